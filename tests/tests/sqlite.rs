//! SQLite: one database, written by three hosts at once under its own POSIX locks.

use anyhow::ensure;
use luna_tests::{Cluster, Result, tool};
use std::path::Path;

fn sql(db: &Path, text: &str) -> Result<String> {
    tool("sqlite3", &["-cmd", ".timeout 60000", &db.display().to_string(), text])
}

#[test]
fn three_hosts_write_one_database() -> Result {
    let c = Cluster::new("sqlite")?;
    sql(&c.path(0, "db"), "create table t(host int, n int, filler text, unique(host, n)); create index i on t(n);")?;
    const ROWS: usize = 15;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|host| {
                let db = c.path(host, "db");
                scope.spawn(move || -> Result {
                    for n in 0..ROWS {
                        sql(&db, &format!("insert into t values({host}, {n}, hex(randomblob(500)));"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    for host in 0..3 {
        let db = c.path(host, "db");
        let count = sql(&db, "select count(*), count(distinct host) from t;")?;
        ensure!(count.trim() == format!("{}|3", 3 * ROWS), "host {host} counts {count}");
        let check = sql(&db, "pragma integrity_check;")?;
        ensure!(check.trim() == "ok", "host {host}: {check}");
    }
    c.finish()
}

#[test]
fn a_transaction_moves_money() -> Result {
    let c = Cluster::new("money")?;
    sql(&c.path(0, "db"), "create table a(id integer primary key, v int); insert into a values(1, 1000), (2, 1000), (3, 1000);")?;
    std::thread::scope(|scope| {
        let movers: Vec<_> = (0..3)
            .map(|host| {
                let db = c.path(host, "db");
                scope.spawn(move || -> Result {
                    for n in 0..8 {
                        let (from, to) = ((host + n) % 3 + 1, (host + n + 1) % 3 + 1);
                        sql(
                            &db,
                            &format!(
                                "begin immediate; update a set v = v - 7 where id = {from}; update a set v = v + 7 where id = {to}; commit;"
                            ),
                        )?;
                        let sum = sql(&db, "select sum(v) from a;")?;
                        ensure!(sum.trim() == "3000", "host {host} sees {sum} in all");
                    }
                    Ok(())
                })
            })
            .collect();
        movers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("a mover panicked"))?)
    })?;
    c.finish()
}
