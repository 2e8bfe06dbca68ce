//! PostgreSQL: a cluster's data directory on the mount, a short pgbench run, then the same on another host.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, tool};
use std::path::{Path, PathBuf};

/// The directory with the server's programs.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")?.flatten().map(|e| e.path().join("bin")).collect();
    found.sort();
    found.into_iter().rfind(|p| p.join("initdb").exists()).context("no PostgreSQL here; install the package postgresql")
}

/// Runs a program of the server as its user.
fn pg(program: &str, args: &[&str]) -> Result<String> {
    let path = programs()?.join(program).display().to_string();
    let mut all = vec!["-u", "postgres", "--", &path];
    all.extend(args);
    tool("runuser", &all)
}

struct Running<'a> {
    data: String,
    socket: &'a str,
}

impl<'a> Running<'a> {
    fn start(data: &Path, socket: &'a str) -> Result<Self> {
        let data = data.display().to_string();
        let options = format!("-c listen_addresses='' -c unix_socket_directories='{socket}' -c fsync=on -c shared_buffers=16MB");
        pg("pg_ctl", &["-D", &data, "-w", "-t", "60", "-l", &format!("{socket}/log"), "-o", &options, "start"])?;
        Ok(Self { data, socket })
    }

    fn sql(&self, text: &str) -> Result<String> {
        Ok(pg("psql", &["-h", self.socket, "-d", "postgres", "-Atc", text])?.trim().to_owned())
    }

    fn balances(&self) -> Result<String> {
        self.sql("select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = pg("pg_ctl", &["-D", &self.data, "-w", "-m", "fast", "stop"]);
    }
}

#[test]
fn pgbench_then_another_host() -> Result {
    let c = Cluster::new("pg")?;
    let socket = c.dir.join("pg");
    std::fs::create_dir(&socket)?;
    for dir in [socket.clone(), c.path(0, "data")] {
        std::fs::create_dir_all(&dir)?;
        tool("chown", &["postgres", &dir.display().to_string()])?;
        tool("chmod", &["700", &dir.display().to_string()])?;
    }
    let socket = socket.display().to_string();
    pg("initdb", &["-D", &c.path(0, "data").display().to_string(), "-A", "trust", "-E", "UTF8", "--no-locale"])?;
    let before = {
        let server = Running::start(&c.path(0, "data"), &socket)?;
        pg("pgbench", &["-h", &socket, "-i", "-q", "-s", "1", "postgres"])?;
        let said = pg("pgbench", &["-h", &socket, "-c", "4", "-T", "4", "postgres"])?;
        ensure!(said.contains("number of failed transactions: 0"), "pgbench: {said}");
        let rows: u64 = server.sql("select count(*) from pgbench_history")?.parse()?;
        ensure!(rows > 0, "not a single transaction");
        server.balances()?
    };
    let parts: Vec<&str> = before.split('|').collect();
    ensure!(parts.len() == 3 && parts[0] == parts[1] && parts[1] == parts[2], "the balances disagree: {before}");
    // the same data directory, through another host
    let server = Running::start(&c.path(1, "data"), &socket)?;
    let after = server.balances()?;
    ensure!(after == before, "on the other host the balances are {after}, they were {before}");
    pg("pgbench", &["-h", &socket, "-c", "2", "-t", "50", "postgres"])?;
    drop(server);
    c.finish()
}
