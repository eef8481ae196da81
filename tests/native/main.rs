//! The software CPU against the processor under the tests.
//!
//! Generated instruction sequences run twice: natively in a forked child (`host`) and in the software CPU (`soft`).
//! Every register, flag and byte of memory must agree, and so must faults: vector, error code, address. What the
//! manuals leave open is left out of it, as narrowly as can be (`verdict`; `docs/known-differences.md` lists it).
//!
//! | file | what |
//! |---|---|
//! | `forms` | every opcode form: which are tried, which are left out and why |
//! | `case` | from a seed and a form to bytes, registers and memory |
//! | `host` | runs cases natively |
//! | `soft` | runs cases in the software CPU |
//! | `verdict` | compares, and says what differs |
//!
//! Every case follows from (seed, number). `cargo test --test native` runs a fixed seed; the long run is
//! `VMCTL_NATIVE_CASES=10000000 cargo test --release --test native` (`make native-long`), with a seed of its own that
//! it prints. `VMCTL_NATIVE_SEED=S VMCTL_NATIVE_CASE=N` replays one case and prints everything about it;
//! `VMCTL_NATIVE_ONLY=text` keeps to the forms whose name contains the text.
//!
//! On hosts that are not x86-64 Linux there is no processor to compare with: the test is not compiled.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code)]

mod case;
mod forms;
mod host;
mod random;
mod soft;
mod verdict;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use case::Case;
use forms::Forms;
use host::Host;
use iced_x86::Code;
use soft::Soft;
use vmctl::testing::hypervisor::soft::crew::Crew;

/// Cases that a plain `cargo test` runs.
const DEFAULT_CASES: u64 = 60_000;
/// Seed of a plain `cargo test`.
const DEFAULT_SEED: u64 = 1;
/// Forms that are reported in full before the test gives up listing.
const SHOWN_FAILURES: usize = 400;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")))
}

struct Plan {
    seed: u64,
    first: u64,
    cases: u64,
    verbose: bool,
    threads: usize,
}

fn plan() -> Plan {
    let long = number("VMCTL_NATIVE_CASES");
    let seed = number("VMCTL_NATIVE_SEED").unwrap_or_else(|| match long {
        None => DEFAULT_SEED,
        Some(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64 % 1_000_000_007)
        }
    });
    if let Some(case) = number("VMCTL_NATIVE_CASE") {
        return Plan { seed, first: case, cases: 1, verbose: true, threads: 1 };
    }
    // The short run has other tests beside it.
    let threads = if long.is_some() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    Plan { seed, first: 0, cases: long.unwrap_or(DEFAULT_CASES), verbose: false, threads }
}

/// The instruction after which the two first differ.
fn blame(case: &Case, host: &mut Host, soft: &mut Soft) -> Code {
    for count in 1..case.placed.len() {
        let cut = [case.prefix(count)];
        host.start(&cut);
        let software = soft.run(&cut[0]);
        let native = host.finish(&cut);
        if verdict::compare(&cut[0], &native[0], &software).is_some() {
            return case.placed[count - 1].code;
        }
    }
    case.placed.last().expect("a case has an instruction").code
}

/// What came of some of the cases.
#[derive(Default)]
struct Tally {
    covered: HashSet<Code>,
    /// By the form that is to blame: the cases that differ, and the number and story of the first.
    failures: BTreeMap<String, (u64, u64, String)>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.covered.extend(other.covered);
        for (form, (count, number, text)) in other.failures {
            let entry = self.failures.entry(form).or_insert((0, number, String::new()));
            entry.0 += count;
            if entry.2.is_empty() || number < entry.1 {
                (entry.1, entry.2) = (number, text);
            }
        }
    }
}

/// Takes batches from `next` until all cases of the plan are taken.
fn run_batches(plan: &Plan, forms: &Forms, next: &AtomicU64) -> Tally {
    let mut host = Host::new();
    // Every other case runs as beside other vCPUs.
    let mut softs = [Soft::new(host.pages(), None), Soft::new(host.pages(), Some(Crew::new(1)))];
    let which = |case: &Case| (case.number % 2) as usize;
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    let end = plan.first + plan.cases;
    loop {
        let number = next.fetch_add(host::BATCH as u64, Ordering::Relaxed);
        if number >= end {
            return tally;
        }
        let batch: Vec<Case> = (number..end.min(number + host::BATCH as u64)).map(|n| case::make(plan.seed, n, forms)).collect();
        host.start(&batch);
        let soft_results: Vec<_> = batch.iter().map(|case| softs[which(case)].run(case)).collect();
        let host_results = host.finish(&batch);
        for ((case, soft), host) in batch.iter().zip(&soft_results).zip(&host_results) {
            tally.covered.extend(&case.forms);
            let difference = verdict::compare(case, host, soft);
            if plan.verbose {
                println!("{}", verdict::describe(case, host, soft));
            }
            if let Some(difference) = difference {
                failed.push((case.clone(), host.clone(), soft.clone(), difference));
            }
        }
        // Only once the batch's outcomes are taken: finding out who is to blame runs more cases.
        for (case, host_outcome, soft_outcome, difference) in failed.drain(..) {
            let blamed = format!("{:?}", blame(&case, &mut host, &mut softs[which(&case)]));
            let text = || {
                format!(
                    "{difference}\n  replay: VMCTL_NATIVE_SEED={} VMCTL_NATIVE_CASE={} cargo test --test native -- --nocapture\n{}",
                    plan.seed,
                    case.number,
                    verdict::describe(&case, &host_outcome, &soft_outcome)
                )
            };
            tally.failures.entry(blamed).and_modify(|e| e.0 += 1).or_insert_with(|| (1, case.number, text()));
        }
    }
}

#[test]
fn the_software_cpu_does_what_the_processor_does() {
    let plan = plan();
    let forms = Forms::new(std::env::var("VMCTL_NATIVE_ONLY").ok().as_deref());
    println!("native: seed {} cases {} forms {} threads {}", plan.seed, plan.cases, forms.tried.len(), plan.threads);
    if plan.verbose {
        forms.print_left_out();
    }
    let started = Instant::now();
    let next = AtomicU64::new(plan.first);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.threads).map(|_| scope.spawn(|| run_batches(&plan, &forms, &next))).collect();
        for worker in workers {
            tally.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!(
        "native: {} cases in {:.1} s, {} forms covered, {} left out",
        plan.cases,
        started.elapsed().as_secs_f64(),
        tally.covered.len(),
        forms.left_out.len()
    );
    if !tally.failures.is_empty() {
        for (form, (count, _, text)) in tally.failures.iter().take(SHOWN_FAILURES) {
            println!("\n=== {form}: {count} cases differ, the first:\n{text}");
        }
        let list: Vec<String> = tally.failures.iter().map(|(form, (count, ..))| format!("{form} ({count})")).collect();
        let failed: u64 = tally.failures.values().map(|e| e.0).sum();
        panic!("{failed} of {} cases differ (seed {}): {}", plan.cases, plan.seed, list.join(", "));
    }
    if plan.cases >= forms.tried.len() as u64 {
        let missing: Vec<String> = forms.tried.iter().filter(|f| !tally.covered.contains(f)).map(|f| format!("{f:?}")).collect();
        assert!(missing.is_empty(), "forms that no case covered: {}", missing.join(", "));
    }
}

#[test]
fn every_opcode_form_is_tried_or_left_out_for_a_reason() {
    let forms = Forms::new(None);
    forms.print_left_out();
    assert!(forms.tried.len() > 1000, "only {} forms are tried", forms.tried.len());
    assert!(forms.left_out.iter().all(|(_, why)| !why.is_empty()));
}
