//! The life of a guest: what is kept of it, and what runs it.
pub mod apply; // a plan, carried out
pub mod autostart; // which guests start with the host
pub mod bhyve; // FreeBSD's bhyve(8)
pub mod change; // disks, interfaces and media added to a guest file and taken away
pub mod clone; // a guest that is a copy of another
pub mod control; // what commands and supervisors say to each other
pub mod create; // guests are made, renamed, removed
pub mod definition; // a guest file as it is read before each boot
pub mod disk_record; // which of a guest's disks vmctl has made
pub mod edit; // one change of a guest file
pub mod engine; // one child process a boot
pub mod engine_user; // the user that an engine of root goes on as
pub mod error; // what goes wrong, in the words a user reads
pub mod events; // what happened to a guest
pub mod figures; // what guests use, now
pub mod fleet_switches; // the switches that a fleet's guests are on
pub mod gpt; // a partition table's end, moved to that of a disk that has grown
pub mod graph; // a picture of guests, switches and start order
pub mod host_needs; // what guests need of a FreeBSD host
pub mod identity; // UUIDs and MAC addresses
pub mod images; // disks made from images
pub mod import; // moving over from other managers
pub mod install; // an installer's run: its medium and its answers
pub mod launch_file; // the guest file of an image
pub mod launcher; // how a command starts a supervisor and asks one
pub mod lock; // who runs or changes a guest
pub mod logs; // logs that do not grow without bound
pub mod membership; // which fleet a guest belongs to
pub mod metrics; // the same as Prometheus reads it
pub mod metrics_format; // which format a client gets
pub mod named_files; // what a guest file names: are its disks disks, its files files
pub mod overview; // what `list` and `info` tell
pub mod pending; // disks whose making or taking away is under way
pub mod plan; // what a fleet file would change
pub mod preflight; // what this host knows of a guest file before anything is made of it
pub mod provision; // disks: made, grown, copied, removed
pub mod reach; // how ssh reaches a guest
pub mod secrets; // secrets of a fleet, in files of this user alone
pub mod seed; // what cloud-init in the guest is told, as a volume
pub mod snapshot; // snapshots of disks
pub mod state; // what the program knows of a guest
pub mod stopping; // how a command ends a guest, whatever its supervisor does
pub mod store; // a datastore and the guests in it
pub mod supervisor; // one process a guest: boots, policy, console, control socket
pub mod switches; // switches as the host's tools take them
pub mod timestamp; // moments in files
pub mod trust; // whether this user may run what a datastore says
