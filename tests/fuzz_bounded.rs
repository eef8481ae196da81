//! The fuzz targets of `fuzz/bodies.rs` for a bounded number of inputs, so that every build runs them.
//!
//! Inputs come from a seeded generator: fresh ones, and mutations of earlier ones. A failure prints the target, the
//! seed and the number of the input; `VMCTL_FUZZ_SEED=S VMCTL_FUZZ_INPUTS=N cargo test --test fuzz_bounded TARGET`
//! makes the same inputs again. More inputs make a longer run: `VMCTL_FUZZ_INPUTS=1000000`.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const INPUTS: u64 = 1_000;
const SEED: u64 = 0x5eed_0001;
const INPUT_MAX: usize = 2_048;
/// One input must not keep the board longer than this, on a slow and busy host.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
/// The process must not grow beyond this while a target runs.
const GROWTH_MAX_MIB: u64 = 512;

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn fresh(random: &mut Random) -> Vec<u8> {
    let len = random.below(INPUT_MAX);
    // Small values are commoner in what matters: opcodes, indices, lengths.
    (0..len).map(|_| if random.below(3) == 0 { random.below(16) as u8 } else { random.next() as u8 }).collect()
}

fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(8) {
        let at = random.below(input.len());
        match random.below(6) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.below(6)],
            2 => input.insert(at, random.next() as u8),
            3 if !input.is_empty() => drop(input.remove(at)),
            4 => input.truncate(at),
            _ => {
                let end = (at + random.below(64)).min(input.len());
                let copy = input[at.min(end)..end].to_vec();
                input.extend(copy);
            }
        }
    }
    input.truncate(INPUT_MAX);
}

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, which is no number")),
        Err(_) => default,
    }
}

/// Resident memory in MiB; `None` where the host does not say.
fn resident_mib() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096 >> 20)
}

fn run(name: &str) {
    let seed = from_environment("VMCTL_FUZZ_SEED", SEED);
    let inputs = from_environment("VMCTL_FUZZ_INPUTS", INPUTS);
    let mut random = Random(seed);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let before = resident_mib();
    for number in 0..inputs {
        let mut input = fresh(&mut random);
        if !kept.is_empty() && random.below(2) == 0 {
            input.clone_from(&kept[random.below(kept.len())]);
            mutate(&mut input, &mut random);
        }
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| bodies::run(name, &input)));
        let took = start.elapsed();
        assert!(outcome.is_ok(), "target {name}, seed {seed}, input {number}: {} bytes {input:02x?}", input.len());
        assert!(took < INPUT_TIME_MAX, "target {name}, seed {seed}, input {number} took {took:?}");
        let slot = random.below(64);
        match kept.get_mut(slot) {
            Some(old) => *old = input,
            None => kept.push(input),
        }
    }
    if let (Some(before), Some(after)) = (before, resident_mib()) {
        assert!(after < before + GROWTH_MAX_MIB, "target {name}, seed {seed}: grew from {before} to {after} MiB");
    }
}

/// Inputs that once broke something, with their targets.
const SEEDS: &[(&str, &[u8])] = &[("volume", include_bytes!("../fuzz/seeds/volume-ext-blocks"))];

#[test]
fn inputs_that_once_broke_something_do_not_any_more() {
    for (name, input) in SEEDS {
        let outcome = catch_unwind(AssertUnwindSafe(|| bodies::run(name, input)));
        assert!(outcome.is_ok(), "target {name}: {input:02x?}");
    }
}

macro_rules! targets {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            run($name);
        })*

        #[test]
        fn every_target_is_run() {
            let run: Vec<&str> = vec![$($name),*];
            let all: Vec<&str> = bodies::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(run, all);
        }
    };
}

targets! {
    the_ring_survives: "queue",
    the_block_device_survives: "virtio_blk",
    the_network_device_survives: "virtio_net",
    the_connector_survives_its_engine: "connector",
    the_server_of_answer_files_survives: "answers",
    fragments_of_a_guest_are_put_together_or_dropped: "frames",
    the_entropy_device_survives: "virtio_rng",
    the_console_survives: "virtio_console",
    the_pci_root_survives: "pci",
    the_uart_survives: "serial",
    the_interval_timer_survives: "pit",
    the_real_time_clock_survives: "rtc",
    the_keyboard_controller_survives: "ps2",
    the_acpi_registers_survive: "pm",
    the_8259_pair_survives: "pic",
    the_io_apic_survives: "ioapic",
    the_local_apic_survives: "lapic",
    the_interrupt_fabric_survives: "interrupts",
    the_map_of_guest_memory_is_what_its_model_is: "memory_map",
    what_was_saved_of_a_machine_is_read_or_refused: "saved_state",
    exits_of_kvm_that_no_kernel_makes_stay_within_their_page: "kvm_exits",
    the_settings_of_vm_bhyve_are_told: "vm_bhyve",
    the_listings_of_the_host_are_read: "listings",
    requests_for_metrics_are_understood_or_refused: "scrape",
    the_fleet_reader_survives: "fleet",
    the_readers_of_disks_survive: "volume",
    the_boot_menu_survives: "boot_config",
    the_loader_of_kernels_survives: "kernel",
    the_ahci_adapter_survives: "ahci",
    qcow2_images_survive: "qcow2",
    vmdk_images_survive: "vmdk",
    vhd_images_survive: "vhd",
    archives_and_packed_streams_survive: "archive",
    checksum_files_signatures_and_catalogues_survive: "checksums",
    the_partitions_of_a_guest_are_read: "partitions",
    a_probe_of_bhyve_is_read: "bhyve_probe",
    the_documents_of_a_boot_are_read: "boot_documents",
}
