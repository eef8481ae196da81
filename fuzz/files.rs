//! Targets that read files of the user's: bytes choose pieces of text, now and then a byte of their own.

use std::path::Path;

use vmctl::testing::config::{EngineKind, FleetRequest, GuestRequest, HostConfig, HostPaths, load_fleet, load_guest};

use super::Bytes;

/// What fleet files are made of, whole lines and parts of them.
const PIECES: [&str; 56] = [
    "name = \"room\"\n",
    "[defaults]\n",
    "[[templates]]\n",
    "[[guests]]\n",
    "[[secrets]]\n",
    "[[guests.disks]]\n",
    "[[templates.nics]]\n",
    "[guests.host]\n",
    "[guests.vars]\n",
    "[templates.kernel]\n",
    "id = \"a\"\n",
    "id = \"b\"\n",
    "name = \"g-{{ index }}\"\n",
    "name = \"g-{{ each }}\"\n",
    "name = \"{{ each.n }}\"\n",
    "name = \"g\"\n",
    "template = \"a\"\n",
    "template = \"b\"\n",
    "template = \"debian\"\n",
    "extends = [\"a\", \"b\", \"small\"]\n",
    "parameters = [{ id = \"p\" }, { id = \"q\", default = \"{{ p }}\" }]\n",
    "parameters = [{ id = \"p\", default = 3 }]\n",
    "with = { p = \"{{ index }}\" }\n",
    "with = { p = 1, q = true, r = [] }\n",
    "count = 3\n",
    "count = 900\n",
    "index = 7\n",
    "for_each = [\"x\", \"y\"]\n",
    "for_each = [{ n = \"x\", m = 2 }, { n = \"y\" }]\n",
    "for_each = [1, [2], { a = {} }]\n",
    "host = { names = [\"h*\", \"[\"], labels = [\"l\"] }\n",
    "memory = \"{{ p * 64 }}M\"\n",
    "memory = \"64M\"\n",
    "cpus = 2\n",
    "kernel = { image = \"k\" }\n",
    "image = \"k\"\n",
    "kernel.image = \"{{ secret.a }}\"\n",
    "size = \"{{ q }}G\"\n",
    "disks = [{ id = \"root\", size = \"1G\" }]\n",
    "disks = [{ id = \"root\", path = \"r\" }]\n",
    "disks = [{ id = \"root\", remove = true }]\n",
    "nics = [{ id = \"n\", mac = \"02:00:00:00:00:01\" }]\n",
    "autostart = { enabled = true, after = [\"g\", \"g-1\"] }\n",
    "env = \"A\"\n",
    "file = \"f\"\n",
    "command = [\"c\"]\n",
    "tags = [\"{{ secret.b }}\"]\n",
    "vars = { p = \"{{ p }}\" }\n",
    "unset = [\"kernel.initrd\"]\n",
    "include = [\"i\"]\n",
    "uuid = \"6f1c5a9e-0d2b-4c3f-9e57-1b2a3c4d5e6f\"\n",
    "{{ ",
    " }}",
    "\"",
    "\n",
    "description = \"\"\"\n",
];

/// A fleet file is read or refused, without a panic, in bounded time and memory; what it means, its guest files say too.
pub fn fleet(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    // Short texts are now and then right.
    let shape = bytes.byte();
    let mut text = String::from("name = \"room\"\n");
    if shape & 1 == 0 {
        text.push_str("defaults.kernel = { image = \"k\" }\n[[guests]]\nname = \"g-{{ index }}\"\n");
    }
    for _ in 0..shape >> 1 {
        if bytes.is_empty() {
            break;
        }
        let byte = bytes.byte();
        match PIECES.get(usize::from(byte) % 64) {
            Some(piece) => text.push_str(piece),
            None => text.push(char::from(bytes.byte())),
        }
    }
    let paths = HostPaths {
        config_file: "/nonexistent/vmctl.toml".into(),
        datastore: "/nonexistent".into(),
        cache_dir: "/nonexistent".into(),
        runtime_dir: "/nonexistent".into(),
    };
    let host = HostConfig::of(&paths, EngineKind::Embedded);
    let datastore = Path::new("/nonexistent");
    let file = Path::new("/nonexistent/fleet.toml");
    let Ok(fleet) = load_fleet(&FleetRequest { file, text: Some(&text), host: &host, datastore, engines: &Default::default() })
    else {
        return;
    };
    for guest in fleet.guests.iter().take(4) {
        let request = GuestRequest {
            file: Path::new("/elsewhere/guest.toml"),
            text: Some(&guest.text),
            name: Some(&guest.config.name),
            sets: &[],
            host: &host,
            datastore,
        };
        let again = load_guest(&request).unwrap_or_else(|problems| panic!("{text}\n{}\n{problems}", guest.text));
        assert_eq!(again.config, guest.config, "{text}\n{}", guest.text);
    }
}
