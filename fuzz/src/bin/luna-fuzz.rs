//! libFuzzer's form of the targets: `LUNA_FUZZ=target luna-fuzz [options] corpus...`. Built by `make fuzz`; the entry point and its `unsafe`
//! are the macro's.
#![allow(unsafe_code, reason = "libFuzzer calls a function by its C name, which the macro exports")]
#![no_main]

use luna_fuzz::target::{TARGETS, Target};
use std::sync::OnceLock;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("LUNA_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|t| t.name == name);
        found.unwrap_or_else(|| {
            eprintln!("LUNA_FUZZ must name a target: {}", TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(" "));
            std::process::exit(2)
        })
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| (target().run)(input));
