use std::io::{Read, Write};
use vmctl::hypervisor::backend::Backend;
use vmctl::hypervisor::soft::run::{SoftBackend, SoftOptions};
use vmctl::machine::{assembly, spec::*};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (kernel, initrd, cmdline) = (a[1].clone(), a[2].clone(), a[3].clone());
    let mut disks = vec![];
    if let Some(d) = a.get(4)
        && !d.is_empty()
    {
        disks.push(DiskSpec {
            id: "root".into(),
            path: d.into(),
            device: DiskDevice::VirtioBlk,
            slot: 4,
            read_only: false,
            cache: CacheMode::Writeback,
            serial: "root".into(),
            discard: true,
        });
    }
    let n: u32 = std::env::var("CPUS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let spec = VmmSpec {
        version: SPEC_VERSION,
        name: "dev".into(),
        uuid: "00000000-0000-4000-8000-000000000000".into(),
        backend: BackendChoice::Soft,
        cpus: CpuTopology { sockets: 1, cores: n, threads: 1 },
        memory_bytes: 512 << 20,
        loader: LoaderSpec::Kernel {
            image: kernel.into(),
            initrd: if initrd.is_empty() { None } else { Some(initrd.into()) },
            cmdline,
        },
        disks,
        nics: if std::env::var("NET").is_ok() {
            vec![NicSpec {
                id: "net".into(),
                mac: [2, 0, 0, 0, 0, 1],
                device: NicDevice::VirtioNet,
                slot: 5,
                mtu: 1500,
                backend: NicBackend::User(UserNetSpec {
                    network: "10.0.2.0".parse().unwrap(),
                    prefix: 24,
                    gateway: "10.0.2.2".parse().unwrap(),
                    dns: "10.0.2.3".parse().unwrap(),
                    guest: "10.0.2.15".parse().unwrap(),
                    dns_servers: vec![],
                    isolated: false,
                    forwards: vec![],
                }),
            }]
        } else {
            vec![]
        },
        rng: true,
        com: [true, false, false, false],
        virtio_console: false,
        debug_exit_port: Some(0xf4),
        deterministic: std::env::var("DET").is_ok(),
    };
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let t0 = std::time::Instant::now();
    let machine = assembly::assemble(&spec, ours).unwrap_or_else(|e| panic!("{e}: {e:?}"));
    eprintln!("[assembled in {:?}]", t0.elapsed());
    let mut backend = SoftBackend::new(machine.vcpu_setup(), SoftOptions { deterministic: machine.manual_clock.clone() });
    let mut input = theirs.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut b = [0; 4096];
        let mut o = std::io::stdout();
        while let Ok(n) = theirs.read(&mut b) {
            if n == 0 {
                break;
            }
            o.write_all(&b[..n]).unwrap();
            o.flush().unwrap();
        }
    });
    std::thread::spawn(move || {
        let mut b = [0; 4096];
        let mut i = std::io::stdin();
        while let Ok(n) = i.read(&mut b) {
            if n == 0 {
                break;
            }
            input.write_all(&b[..n]).unwrap();
        }
    });
    let t = std::time::Instant::now();
    let exit = backend.run();
    machine.finish(std::time::Duration::from_secs(1));
    let s = t.elapsed().as_secs_f64();
    eprintln!(
        "\n[exit {exit:?} after {s:.3} s, {} M instructions, {:.0} MIPS]",
        backend.retired() / 1_000_000,
        backend.retired() as f64 / 1e6 / s
    );
}
