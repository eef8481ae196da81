//! The life of a guest: its files, and the processes that run it.
pub mod agent; // the QEMU guest agent
pub mod autostart; // order in which guests start and stop
pub mod change; // adding and removing disks, interfaces and media of a guest file
pub mod clone; // a guest that is a copy of another
pub mod control; // the protocol between commands and supervisors
pub mod create; // making, renaming and removing guests
pub mod definition; // a guest file as it is read before each boot
pub mod disk_record; // record of the disks that vmctl has made
pub mod edit; // one change of a guest file
pub mod engine; // one child process per boot: our own, or FreeBSD's bhyve(8)
pub mod engine_user; // the user of an engine that root starts
pub mod error; // errors of guests, with messages for the user
pub mod events; // the event log
pub mod figures; // figures of guests
pub mod fleet; // the guests and switches that one file declares
pub mod forwards; // forwards of ports, in the file and at once
pub mod gpt; // moving the backup of a partition table on a disk that has grown
pub mod graph; // a picture of guests, switches and start order
pub mod host_needs; // needs of guests on a FreeBSD host
pub mod identity; // UUIDs and MAC addresses
pub mod images; // disks made from images
pub mod import; // migration from other managers
pub mod install; // an installer's run: its medium and its answers
pub mod launch_file; // the guest file of an image
pub mod launcher; // starting a supervisor, and sending requests to it
pub mod lock; // locks on guests and files
pub mod logs; // logs that do not grow without bound
pub mod metrics; // the figures in Prometheus' formats
pub mod metrics_format; // the format that a client gets
pub mod named_files; // checks of the files that a guest file names
pub mod overview; // what `list` and `info` show
pub mod pending; // disks that are being made or removed
pub mod preflight; // checks of a guest file on this host before anything is made
pub mod provision; // making, growing, copying and removing disks
pub mod reach; // how ssh reaches a guest
pub mod seed; // the volume with the data for cloud-init
pub mod snapshot; // snapshots of disks
pub mod state; // the program's state of a guest
pub mod stopping; // ending a guest from a command, whatever its supervisor does
pub mod store; // a datastore and the guests in it
pub mod supervisor; // one process per guest: boots, policy, console, control socket
pub mod switch; // switches as the host's tools take them
pub mod timestamp; // moments in files
pub mod trust; // whether this user may run what a datastore says
pub mod unknown_image; // what can be seen of an image that no catalogue describes
