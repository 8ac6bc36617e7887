//! Tells the program what it was built by: counts of instructions can only be compared if that is the same.

use std::env::var;
use std::process::Command;

/// What overrides the profile that `Cargo.toml` says.
const OVERRIDES: [&str; 4] = [
    "CARGO_PROFILE_RELEASE_LTO",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL",
    "CARGO_ENCODED_RUSTFLAGS",
];

fn main() {
    let tell = |name| var(name).expect("cargo tells a build script");
    let rustc = Command::new(tell("RUSTC")).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
    let mut built_by = format!("{version}, {}, {}", tell("TARGET"), tell("PROFILE"));
    for name in OVERRIDES {
        println!("cargo::rerun-if-env-changed={name}");
        if let Ok(value) = var(name)
            && !value.is_empty()
        {
            built_by.push_str(&format!(", {name}={}", value.replace('\x1f', " ")));
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=BUILT_BY={built_by}");
}
