//! Writes the inputs that a target begins with into a folder: `seeds TARGET FOLDER`. Built without instrumentation.

use luna_fuzz::target::TARGETS;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, name, folder] = &args[..] else {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: seeds TARGET FOLDER, with one of: {}", names.join(" "));
        std::process::exit(2)
    };
    let Some(t) = TARGETS.iter().find(|t| t.name == name) else { std::process::exit(2) };
    std::fs::create_dir_all(folder)?;
    (t.seeds)().iter().enumerate().try_for_each(|(n, s)| std::fs::write(Path::new(folder).join(format!("seed-{n}")), s))
}
