//! The catalogue of images, media and firmware that can be fetched by name. One is shipped with the program; the host
//! file adds others.
//!
//! A catalogue is a TOML file with the tables `[[image]]`, `[[iso]]` and `[[firmware]]`. An entry of a later catalogue
//! replaces one of the same kind and name in an earlier catalogue. `docs/catalogue.md` describes every key.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::digest::Digest;
use super::error::{FetchError, Result};
use super::image::Format;
use crate::units::ByteSize;

/// Maximum size of a catalogue.
pub const MAX_BYTES: usize = 1 << 20;

/// The catalogues in the program: label and text.
const SHIPPED: [(&str, &str); 5] = [
    ("freebsd.toml", include_str!("../../catalogue/freebsd.toml")),
    ("debian.toml", include_str!("../../catalogue/debian.toml")),
    ("linux.toml", include_str!("../../catalogue/linux.toml")),
    ("bsd.toml", include_str!("../../catalogue/bsd.toml")),
    ("firmware.toml", include_str!("../../catalogue/firmware.toml")),
];

/// Kind of a thing that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A disk image.
    Image,
    /// An installation medium.
    Iso,
    /// A firmware.
    Firmware,
}

impl Kind {
    /// Returns the name as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Iso => "iso",
            Self::Firmware => "firmware",
        }
    }
}

/// Origin of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is downloaded.
    Download(Download),
    /// It is built on this host.
    Build(Build),
}

/// A download of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// URLs, in the order in which they are tried.
    pub urls: Vec<String>,
    /// The expected checksum, or where to find it.
    pub checksum: Checksum,
    /// Length of the download, if it does not change.
    pub size: Option<u64>,
    /// Format of the disk, apart from packing.
    pub format: Option<Format>,
    /// The file within an archive.
    pub member: Option<String>,
}

/// Where a digest comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// From the catalogue.
    Known(Digest),
    /// From the publisher's checksum file.
    File {
        /// URL of the file; https, or signed.
        url: String,
        /// The name to look for in it.
        name: String,
        /// The signify(1) key that signed the file.
        signify_key: Option<String>,
    },
    /// There is none.
    None,
}

/// Description of an image to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The recipe.
    pub recipe: Recipe,
    /// Packages in addition to those of every such image.
    pub packages: Vec<String>,
    /// Size of the disk.
    pub disk: u64,
    /// Release, if the recipe has several.
    pub release: Option<String>,
}

/// Recipe of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// Debian's packages, by mmdebstrap.
    Debian,
    /// FreeBSD's distribution sets, on FreeBSD.
    FreeBsd,
}

/// Facts about a guest made from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The system's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Description in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The `loader` of a guest file that boots it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<String>,
    /// The kernel's command line, with the loader `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Bytes of the smallest disk that it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_disk_bytes: Option<u64>,
    /// The user that cloud-init creates, or that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it has cloud-init, or a program that reads the same seed.
    #[serde(default)]
    pub cloud_init: bool,
}

/// An entry of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Kind of the entry.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Origin of the entry.
    pub source: Source,
    /// Facts about it.
    pub facts: Facts,
    /// The catalogue that it is from.
    pub catalogue: String,
}

/// All catalogues combined.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

impl Catalogue {
    /// Returns the catalogue in the program.
    pub fn shipped() -> Self {
        let mut catalogue = Self::default();
        for (label, text) in SHIPPED {
            catalogue.add(label, text).expect("a test reads what is shipped");
        }
        catalogue
    }

    /// Adds the text of a catalogue. `label` names it in messages.
    pub fn add(&mut self, label: &str, text: &str) -> Result<()> {
        let file: Written = toml::from_str(text).map_err(|error| {
            let position = error.span().map_or(label.to_owned(), |span| position(label, text, &span));
            FetchError::user(format!("{position}: {}", error.message().trim().replace('\n', ", ")))
        })?;
        let tables = [(Kind::Image, file.image), (Kind::Iso, file.iso), (Kind::Firmware, file.firmware)];
        let mut added: Vec<Entry> = Vec::new();
        for (kind, written) in tables.into_iter().flat_map(|(kind, list)| list.into_iter().map(move |entry| (kind, entry))) {
            let span = written.span();
            let at = |error: FetchError| {
                let hint = error.next_step().map(str::to_owned);
                let located = FetchError::user(format!("{}: {error}", position(label, text, &span)));
                if let Some(hint) = hint { located.hint(hint) } else { located }
            };
            let entry = written.into_inner().check(kind, label).map_err(at)?;
            if added.iter().any(|other| other.kind == kind && other.name == entry.name) {
                return Err(at(FetchError::user(format!("{} `{}` is defined twice", kind.name(), entry.name))));
            }
            added.push(entry);
        }
        self.entries.retain(|old| !added.iter().any(|new| new.kind == old.kind && new.name == old.name));
        self.entries.extend(added);
        self.entries.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        Ok(())
    }

    /// Returns all entries, sorted by kind and name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the entry of this kind and name, or an error with similar names.
    pub fn find(&self, kind: Kind, name: &str) -> Result<&Entry> {
        let of_kind = || self.entries.iter().filter(|entry| entry.kind == kind);
        if let Some(entry) = of_kind().find(|entry| entry.name == name) {
            return Ok(entry);
        }
        let error = FetchError::user(format!("no {} is called `{name}`", kind.name()));
        if let Some(other) = self.entries.iter().find(|entry| entry.name == name) {
            return Err(error.hint(format!("there is such {}: `vmctl fetch {} {name}`", article(other.kind), other.kind.name())));
        }
        if let Some(newest) = self.newest(name, |_| true).filter(|_| kind == Kind::Image) {
            return Err(error.hint(format!("`{name}` is a family of images: its newest is `{}`", newest.name)));
        }
        let list = if kind == Kind::Iso { "iso" } else { "image" };
        Err(match near(name, of_kind().map(|entry| entry.name.as_str())) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error
                .hint(format!("`vmctl {list} list --all` shows what there is; a file is named with a slash, like `./{name}`")),
        })
    }

    /// Returns the newest release of a family of images: of those that `runs` lets through, or else of all.
    pub fn newest(&self, family: &str, runs: impl Fn(&Facts) -> bool) -> Option<&Entry> {
        let images = self.entries.iter().filter(|entry| entry.kind == Kind::Image);
        let releases = images.filter_map(|entry| Some((family_of(&entry.name)?, entry)));
        let of_family = releases.filter(|((name, _), _)| name == family);
        of_family.max_by_key(|((_, version), entry)| (runs(&entry.facts), version.clone())).map(|(_, entry)| entry)
    }
}

impl Catalogue {
    /// Returns the image of a family that is built on this host: one with cloud-init, if there is one.
    pub fn built(&self, family: &str) -> Option<(&Entry, &Build)> {
        let built = self.entries.iter().filter_map(|entry| match &entry.source {
            Source::Build(build) => Some((entry, build)),
            Source::Download(_) => None,
        });
        let of_family = built.filter(|(entry, _)| {
            let own = family_of(&entry.name).map_or_else(|| entry.name.clone(), |(family, _)| family);
            own.strip_prefix(family).is_some_and(|rest| rest.starts_with('-'))
        });
        of_family.max_by_key(|(entry, _)| entry.facts.cloud_init)
    }
}

/// Returns the family and the version in the name of a release: `debian` and 13, or `freebsd-cloud` and 15.1 of
/// `freebsd-15.1-cloud`.
pub fn family_of(name: &str) -> Option<(String, Vec<u64>)> {
    let version = |part: &str| {
        part.split('.').map(|number| number.parse::<u32>().map(u64::from)).collect::<std::result::Result<Vec<_>, _>>().ok()
    };
    let parts: Vec<&str> = name.split('-').collect();
    let (at, version) = parts.iter().enumerate().skip(1).find_map(|(at, part)| Some((at, version(part)?)))?;
    let family: Vec<&str> = parts.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, part)| *part).collect();
    Some((family.join("-"), version))
}

/// Returns those of `names` that are much like `name`, the most alike first, as words for a question.
pub fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    const SHOWN: usize = 3;
    let wanted = name.to_ascii_lowercase();
    let mut alike: Vec<(f64, &str)> =
        names.map(|other| (strsim::jaro_winkler(other, &wanted), other)).filter(|(likeness, _)| *likeness > 0.8).collect();
    alike.sort_by(|(a, a_name), (b, b_name)| b.total_cmp(a).then(a_name.cmp(b_name)));
    let shown: Vec<String> = alike.iter().take(SHOWN).map(|(_, other)| format!("`{other}`")).collect();
    match &shown[..] {
        [] => None,
        [one] => Some(one.clone()),
        [first @ .., last] => Some(format!("{} or {last}", first.join(", "))),
    }
}

fn article(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "an image",
        Kind::Iso => "an ISO",
        Kind::Firmware => "a firmware",
    }
}

/// Returns `LABEL:LINE:COLUMN` of the start of a span.
fn position(label: &str, text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    format!("{label}:{}:{}", before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    image: Vec<Spanned<WrittenEntry>>,
    #[serde(default)]
    iso: Vec<Spanned<WrittenEntry>>,
    #[serde(default)]
    firmware: Vec<Spanned<WrittenEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    name: String,
    version: Option<String>,
    description: Option<String>,
    #[serde(default)]
    urls: Vec<String>,
    sha256: Option<String>,
    sha512: Option<String>,
    checksums: Option<String>,
    checksum_name: Option<String>,
    signify_key: Option<String>,
    size: Option<u64>,
    format: Option<WrittenFormat>,
    member: Option<String>,
    build: Option<WrittenRecipe>,
    #[serde(default)]
    packages: Vec<String>,
    release: Option<String>,
    disk: Option<String>,
    loader: Option<String>,
    cmdline: Option<String>,
    least_disk: Option<String>,
    user: Option<String>,
    #[serde(default)]
    cloud_init: bool,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum WrittenFormat {
    Raw,
    Qcow2,
    Vmdk,
    Vhd,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum WrittenRecipe {
    Debian,
    Freebsd,
}

impl WrittenEntry {
    fn check(self, kind: Kind, catalogue: &str) -> Result<Entry> {
        check_name(&self.name)?;
        let size = |text: &Option<String>| text.as_ref().map(|text| parse_size(text)).transpose();
        let facts = Facts {
            version: self.version.clone(),
            description: self.description.clone(),
            loader: self.loader.clone(),
            cmdline: self.cmdline.clone(),
            least_disk_bytes: size(&self.least_disk)?,
            user: self.user.clone(),
            cloud_init: self.cloud_init,
        };
        let disk = size(&self.disk)?;
        let (name, source) = match self.build {
            Some(recipe) => (self.name.clone(), self.check_build(kind, recipe, disk)?),
            None => (self.name.clone(), self.check_download()?),
        };
        Ok(Entry { kind, name, source, facts, catalogue: catalogue.to_owned() })
    }

    fn check_build(self, kind: Kind, recipe: WrittenRecipe, disk: Option<u64>) -> Result<Source> {
        let download = !self.urls.is_empty() || self.checksums.is_some() || self.sha256.is_some() || self.sha512.is_some();
        if kind != Kind::Image || download {
            return Err(FetchError::user(format!("`{}` is built: only an image can be, and it has no `urls`", self.name)));
        }
        let recipe = match recipe {
            WrittenRecipe::Debian => Recipe::Debian,
            WrittenRecipe::Freebsd => Recipe::FreeBsd,
        };
        if let Some(bad) = self.packages.iter().find(|name| !is_package_name(name)) {
            return Err(FetchError::user(format!("`{bad}` is not the name of a package")));
        }
        if let Some(bad) = self.release.as_ref().filter(|name| !is_package_name(name)) {
            return Err(FetchError::user(format!("`{bad}` is not the name of a release")));
        }
        Ok(Source::Build(Build { recipe, packages: self.packages, disk: disk.unwrap_or(2 << 30), release: self.release }))
    }

    fn check_download(self) -> Result<Source> {
        let name = self.name;
        if self.urls.is_empty() {
            return Err(FetchError::user(format!("`{name}` has neither `urls` nor `build`")));
        }
        for url in &self.urls {
            check_url(url)?;
        }
        let digest = |algorithm: &str, hex: &Option<String>| match hex {
            Some(hex) => format!("{algorithm}:{hex}").parse::<Digest>().map(Some),
            None => Ok(None),
        };
        let known = digest("sha512", &self.sha512)?.or(digest("sha256", &self.sha256)?);
        let checksum = match (known, self.checksums) {
            (Some(digest), None) => Checksum::Known(digest),
            (None, Some(url)) => {
                check_url(&url)?;
                if !url.starts_with("https://") && self.signify_key.is_none() {
                    return Err(FetchError::user(format!("`{url}` can be changed in transit"))
                        .hint("take the checksum file over https, or give its `signify_key`"));
                }
                let file = self.checksum_name.or_else(|| self.urls[0].rsplit('/').next().map(str::to_owned));
                Checksum::File { url, name: file.unwrap_or_default(), signify_key: self.signify_key }
            }
            (None, None) => Checksum::None,
            (Some(_), Some(_)) => {
                return Err(FetchError::user(format!("`{name}` has more than one checksum"))
                    .hint("one of `sha256`, `sha512` and `checksums`"));
            }
        };
        let format = self.format.map(|format| match format {
            WrittenFormat::Raw => Format::Raw,
            WrittenFormat::Qcow2 => Format::Qcow2,
            WrittenFormat::Vmdk => Format::Vmdk,
            WrittenFormat::Vhd => Format::Vhd,
        });
        Ok(Source::Download(Download { urls: self.urls, checksum, size: self.size, format, member: self.member }))
    }
}

fn parse_size(text: &str) -> Result<u64> {
    text.parse::<ByteSize>().map(ByteSize::bytes).map_err(|error| {
        let hint = error.hint.clone();
        let failed = FetchError::user(error.to_string());
        if let Some(hint) = hint { failed.hint(hint) } else { failed }
    })
}

/// Checks a name, since names become file names and arguments.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    let good = name.len() <= 80 && name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good {
        Ok(())
    } else {
        Err(FetchError::user(format!("`{name}` is not a valid name: letters, digits, and `.-_+` after the first")))
    }
}

fn is_package_name(name: &str) -> bool {
    !name.starts_with('-')
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '/'))
}

/// Checks that this is a URL of the net.
pub fn check_url(url: &str) -> Result<()> {
    if url.starts_with("https://") || url.starts_with("http://") {
        Ok(())
    } else {
        Err(FetchError::user(format!("`{url}` is not a URL")).hint("it begins with `https://` or `http://`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        Catalogue::default().add("cat.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_shipped_is_right_and_has_what_is_promised() {
        let catalogue = Catalogue::shipped();
        for (kind, names) in [
            (
                Kind::Image,
                &[
                    "freebsd-15.1",
                    "debian-12",
                    "debian-13",
                    "debian-12-built",
                    "ubuntu-24.04",
                    "rocky-10",
                    "fedora-43",
                    "alpine-3.23",
                ][..],
            ),
            (Kind::Iso, &["freebsd-15.1-bootonly", "freebsd-15.1-disc1", "openbsd-7.9", "netbsd-10.1"]),
            (Kind::Firmware, &["bhyve-uefi"]),
        ] {
            for name in names {
                catalogue.find(kind, name).unwrap_or_else(|error| panic!("{error}"));
            }
        }
        for entry in catalogue.entries() {
            assert!(entry.facts.description.is_some(), "{}", entry.name);
            if let Source::Download(download) = &entry.source {
                assert_ne!(download.checksum, Checksum::None, "{}", entry.name);
                assert!(download.urls.iter().all(|url| url.starts_with("https://")), "{}", entry.name);
            }
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_met_with_what_is() {
        let catalogue = Catalogue::shipped();
        let hint = |kind, name| catalogue.find(kind, name).unwrap_err().next_step().unwrap().to_owned();
        assert!(hint(Kind::Image, "debian-21").contains("`debian-12`"));
        assert!(hint(Kind::Image, "freebsd-15.1-disc1").contains("vmctl fetch iso freebsd-15.1-disc1"));
        assert!(hint(Kind::Image, "zzz").contains("vmctl image list --all"));
    }

    #[test]
    fn a_family_means_its_newest_release_that_the_engine_can_run() {
        let mut catalogue = Catalogue::shipped();
        let more = ["debian-9", "debian-13.10", "debian-13.9", "debian-14"].map(|name| {
            let loader = if name == "debian-14" { "uefi" } else { "grub" };
            format!(
                "[[image]]\nname = '{name}'\nurls = ['https://mirror/x']\nsha256 = '{}'\nloader = '{loader}'\n",
                "a".repeat(64)
            )
        });
        catalogue.add("ours.toml", &more.concat()).unwrap();
        let runs = |facts: &Facts| facts.loader.as_deref() != Some("uefi");
        let newest = |family: &str| catalogue.newest(family, runs).map(|entry| entry.name.as_str());
        assert_eq!(newest("debian"), Some("debian-13.10"));
        assert_eq!(newest("debian-built-cloud"), Some("debian-12-built-cloud"));
        // There is none that runs: the message about it names the newest.
        assert_eq!(newest("alpine"), Some("alpine-3.23"));
        assert_eq!((newest("debian-13"), newest("freebsd-built"), newest("d")), (None, None, None));
        let built = |family: &str| catalogue.built(family).map(|(entry, _)| entry.name.as_str());
        assert_eq!((built("debian"), built("freebsd")), (Some("debian-12-built-cloud"), Some("freebsd-built")));
        assert_eq!((built("deb"), built("rocky")), (None, None));
        assert_eq!(family_of("freebsd-15.1-cloud"), Some(("freebsd-cloud".into(), vec![15, 1])));
        let said = catalogue.find(Kind::Image, "debian").unwrap_err();
        assert!(said.next_step().unwrap().contains("`debian-14`"), "{said:?}");
    }

    #[test]
    fn the_most_alike_names_come_first() {
        let names = ["debian-12", "debian", "fedora-43", "debian-13", "debian-12-built"];
        assert_eq!(near("Debain", names.into_iter()).as_deref(), Some("`debian`, `debian-12` or `debian-13`"));
        assert_eq!(near("fedroa", names.into_iter()).as_deref(), Some("`fedora-43`"));
        assert_eq!(near("zzz", names.into_iter()), None);
    }

    #[test]
    fn a_later_catalogue_takes_the_place_of_an_earlier_entry() {
        let mut catalogue = Catalogue::shipped();
        let before = catalogue.entries().len();
        let text = format!("[[image]]\nname = 'debian-12'\nurls = ['https://mirror/x.qcow2']\nsha256 = '{}'\n", "a".repeat(64));
        catalogue.add("ours.toml", &text).unwrap();
        assert_eq!(catalogue.entries().len(), before);
        assert_eq!(catalogue.find(Kind::Image, "debian-12").unwrap().catalogue, "ours.toml");
    }

    #[test]
    fn mistakes_are_said_with_their_place() {
        let url = "urls = ['https://x/y']\n";
        for (text, expected) in [
            ("[[image]]\nname = 'a'\n".to_owned(), "cat.toml:1:1: `a` has neither `urls` nor `build`"),
            (format!("[[image]]\nname = 'a'\nurl = 'x'\n{url}"), "cat.toml:3:1: unknown field `url`"),
            (format!("[[image]]\nname = '../a'\n{url}"), "cat.toml:1:1: `../a` is not a valid name"),
            ("[[image]]\nname = 'a'\nurls = ['ftp://x']\n".into(), "cat.toml:1:1: `ftp://x` is not a URL"),
            (format!("[[iso]]\nname = 'a'\n{url}sha256 = '12'\n"), "cat.toml:1:1: `sha256:12` is not a checksum"),
            (
                format!("[[iso]]\nname = 'a'\n{url}checksums = 'http://x/SUMS'\n"),
                "cat.toml:1:1: `http://x/SUMS` can be changed in transit",
            ),
            (format!("[[iso]]\nname = 'a'\n{url}[[iso]]\nname = 'a'\n{url}"), "cat.toml:4:1: iso `a` is defined twice"),
            (
                format!("[[iso]]\nname = 'a'\n{url}checksums = 'https://x/S'\nsha256 = '{}'\n", "a".repeat(64)),
                "cat.toml:1:1: `a` has more than one checksum",
            ),
            ("[[image]]\nname = 'a'\nbuild = 'arch'\n".into(), "cat.toml:3:9: unknown variant `arch`"),
            (
                "[[image]]\nname = 'a'\nbuild = 'debian'\npackages = ['--x']\n".into(),
                "cat.toml:1:1: `--x` is not the name of a package",
            ),
            (format!("[[image]]\nname = 'a'\n{url}least_disk = '10'\n"), "cat.toml:1:1: size `10` has no unit"),
            ("[[image]".into(), "cat.toml:1:"),
        ] {
            assert!(wrong(&text).starts_with(expected), "{}", wrong(&text));
        }
    }
}
