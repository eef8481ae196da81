//! The software CPU against the processor under the tests.
//!
//! Generated instruction sequences run twice: natively in a forked child (`host`) and in the software CPU (`soft`).
//! Every register, flag and byte of memory must agree, and so must faults: vector, error code, address. What the
//! manuals leave undefined is masked, instruction by instruction (`case::Masks`).
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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use case::Case;
use forms::Forms;
use host::Host;
use soft::Soft;

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
}

fn plan() -> Plan {
    let long = number("VMCTL_NATIVE_CASES");
    let seed = number("VMCTL_NATIVE_SEED").unwrap_or_else(|| match long {
        None => DEFAULT_SEED,
        Some(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64 % 1_000_000_007)
        }
    });
    match number("VMCTL_NATIVE_CASE") {
        Some(case) => Plan { seed, first: case, cases: 1, verbose: true },
        None => Plan { seed, first: 0, cases: long.unwrap_or(DEFAULT_CASES), verbose: false },
    }
}

/// The instruction after which the two first differ.
fn blame(case: &Case, host: &mut Host, soft: &mut Soft) -> iced_x86::Code {
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

#[test]
fn the_software_cpu_does_what_the_processor_does() {
    let plan = plan();
    let forms = Forms::new(std::env::var("VMCTL_NATIVE_ONLY").ok().as_deref());
    println!("native: seed {} cases {} forms {}", plan.seed, plan.cases, forms.tried.len());
    if plan.verbose {
        forms.print_left_out();
    }
    let started = Instant::now();
    let mut host = Host::new();
    let mut soft = Soft::new(host.pages());
    let mut covered: BTreeSet<String> = BTreeSet::new();
    let mut failures: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut failed_cases = 0u64;
    let mut failed = Vec::new();
    let mut number = plan.first;
    let end = plan.first + plan.cases;
    while number < end {
        let batch: Vec<Case> = (number..end.min(number + host::BATCH as u64)).map(|n| case::make(plan.seed, n, &forms)).collect();
        host.start(&batch);
        let soft_results: Vec<_> = batch.iter().map(|case| soft.run(case)).collect();
        let host_results = host.finish(&batch);
        for ((case, soft), host) in batch.iter().zip(&soft_results).zip(&host_results) {
            covered.extend(case.forms.iter().map(|code| format!("{code:?}")));
            let difference = verdict::compare(case, host, soft);
            if plan.verbose {
                println!("{}", verdict::describe(case, host, soft));
            }
            if let Some(difference) = difference {
                failed_cases += 1;
                failed.push((case.clone(), host.clone(), soft.clone(), difference));
            }
        }
        // Only once the batch's outcomes are taken: finding out who is to blame runs more cases.
        for (case, host_outcome, soft_outcome, difference) in failed.drain(..) {
            let blamed = format!("{:?}", blame(&case, &mut host, &mut soft));
            let text = || {
                format!(
                    "{difference}\n  replay: VMCTL_NATIVE_SEED={} VMCTL_NATIVE_CASE={} cargo test --test native -- --nocapture\n{}",
                    plan.seed,
                    case.number,
                    verdict::describe(&case, &host_outcome, &soft_outcome)
                )
            };
            failures.entry(blamed).and_modify(|e| e.0 += 1).or_insert_with(|| (1, text()));
        }
        number += batch.len() as u64;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "native: {} cases in {seconds:.1} s, {} forms covered, {} left out",
        plan.cases,
        covered.len(),
        forms.left_out.len()
    );
    if !failures.is_empty() {
        for (form, (count, text)) in failures.iter().take(SHOWN_FAILURES) {
            println!("\n=== {form}: {count} cases differ, the first:\n{text}");
        }
        let list: Vec<String> = failures.iter().map(|(form, (count, _))| format!("{form} ({count})")).collect();
        panic!("{failed_cases} of {} cases differ (seed {}): {}", plan.cases, plan.seed, list.join(", "));
    }
    if plan.cases >= forms.tried.len() as u64 {
        let missing: Vec<String> = forms.tried.iter().map(|f| format!("{f:?}")).filter(|f| !covered.contains(f)).collect();
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
