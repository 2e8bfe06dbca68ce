//! `luna serve`: a file as a shared LUN over NBD, for tests, demos and small clusters.
//!
//! Prints `listening on LUN` on stdout, once, when clients can connect; whoever started it can pass that text to
//! `luna mount`. Runs until SIGTERM or SIGINT. Not here: the target itself (the lun crate).

use crate::cli::ServeArgs;
use anyhow::{Context, Result};
use luna_lun::serve::{Listen, ServeOptions};
use std::sync::Arc;

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<()> {
    let listen = match (&args.listen, &args.socket) {
        (Some(text), _) => Listen::Tcp(text.parse().with_context(|| format!("'{text}' is not ADDR:PORT"))?),
        (None, Some(path)) => Listen::Unix(crate::mounts::absolute(path)?),
        (None, None) => unreachable!("the command line demands one of the two"),
    };
    let mut options = ServeOptions::new(&args.file, listen);
    options.export = args.export.clone();
    options.create_bytes = args.create;
    options.read_only = args.read_only;
    options.control = args.control.clone();
    options.power_cut_cache = args.power_cut_cache;
    let server = luna_lun::serve::start(options).with_context(|| format!("cannot serve {}", args.file.display()))?;
    let server = Arc::new(server);
    println!("listening on {}", server.spec());
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let stopper = Arc::clone(&server);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in &mut signals {
            stopper.stop();
        }
    })?;
    server.join();
    Ok(())
}
