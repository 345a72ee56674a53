//! Coverage where the world around the worker changes: another database behind the same address (faults A6), sessions in which a name
//! means something else, and every order of bulk loads, revalidations, DDL and restarts.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, CacheState, Parameter};
use cachekeeper_config::Secret;
use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_engine::{coverage, epoch, tokens};
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_protocol::token::Token;

use cachekeeper_testkit::proxy::Proxy;

use crate::coverage::{Case, case, in_redis, is_right_once_fresh, toml};
use crate::feed::ready;
use crate::support::{Rig, wait_until};

const PLAIN: Case = case(
    "plain",
    "create role loader login; create table plain (id int primary key, v int); insert into plain values (1, 1);
     grant select on plain to loader; grant temporary on database postgres to loader",
    "select id, v from plain",
    &["plain"],
    "",
);

/// Whether the watermark has reached the token's snapshot in its incarnation.
fn has_passed(watermark: Option<&Watermark>, token: &Token) -> bool {
    watermark.is_some_and(|watermark| {
        let snapshot: Snapshot = watermark.snapshot.parse().unwrap();
        watermark.incarnation == token.incarnation && token.snapshot.stamp() <= snapshot.stamp()
    })
}

/// A6: the database behind the address has the schema, but no triggers on the table.
#[tokio::test]
async fn a_database_without_triggers_behind_the_same_address_is_never_called_fresh() {
    let mut rig = Rig::start(PLAIN.before).await;
    let other = Rig::start(PLAIN.before).await;
    for rig in [&rig, &other] {
        rig.context("").postgres.grant("loader").await.unwrap();
    }
    coverage::look(&rig.context(&toml(&[PLAIN])), true).await.unwrap();
    let proxy = Proxy::start(rig.postgres.port()).await.unwrap();
    let mut config = rig.config(&toml(&[PLAIN]));
    config.postgres.url =
        Secret::new(format!("postgres://loader@127.0.0.1:{}/postgres?sslmode=disable", proxy.port()));
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    is_right_once_fresh(&rig, &worker.context, &PLAIN).await;

    let there = other.context("");
    epoch::poll(&there).await.unwrap();
    proxy.lead_to(other.postgres.port());
    for v in 2..20 {
        other.postgres.execute(&format!("update plain set v = {v}")).await.unwrap();
        let token = tokens::token(&there).await.unwrap();
        wait_until("the watermark has passed the update there", async || {
            let (watermark, is_fresh) =
                tokens::wait(&worker.context, &token, Some("plain"), Duration::ZERO).await.unwrap();
            assert!(!is_fresh, "called fresh without triggers: {watermark:?}");
            if has_passed(watermark.as_ref(), &token) { Ok(()) } else { Err(format!("{watermark:?}")) }
        })
        .await;
    }

    // And back: the other server is served while that may still be there, and nothing of this one is called fresh.
    proxy.lead_to(rig.postgres.port());
    rig.postgres.execute("update plain set v = 100").await.unwrap();
    let token = tokens::token(&rig.context("")).await.unwrap();
    wait_until("the worker tells that another server is served", async || {
        let (watermark, is_fresh) =
            tokens::wait(&worker.context, &token, Some("plain"), Duration::ZERO).await.unwrap();
        assert!(!is_fresh, "{watermark:?}");
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.contains("nor its successor")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    rig.postgres.stop();
    rig.postgres.start_again().await.unwrap();
    wait_until("the server's new life is recorded", async || {
        worker.context.postgres.poll().await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    is_right_once_fresh(&rig, &worker.context, &PLAIN).await;
    worker.stop().await;
}

/// A trigger of the application makes a temporary table, in the session in which a write was carried out. Loads in that session go on
/// to mean the real one.
#[tokio::test]
async fn a_temporary_table_in_a_session_shadows_nothing() {
    let rig = Rig::start(
        "create table plain (id int primary key, v int, kind int); create table kinds (id int primary key, name text);
         insert into kinds values (1, 'one'); insert into plain select n, n, 1 from generate_series(1, 50) n;
         create function audit() returns trigger language plpgsql as 'begin
            create temporary table if not exists kinds (id int, name text); return null; end';
         create trigger audit after update on plain for each statement execute function audit()",
    )
    .await;
    let datasets = "[dataset.plain]\nquery = \"select p.id, p.v, k.name from plain p join kinds k on k.id = p.kind\"\n\
         key = \"plain:{id}\"\nformat = \"json\"\n\
         watch = [{ table = \"plain\", key = { id = \"id\" } }, { table = \"kinds\", dataset = true }]\n\
         [dataset.plain.write]\nstatement = \"update plain set v = :v where id = :id\"\n";
    let context = rig.context(datasets);
    epoch::ensure(&context, "").await.unwrap();
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let cache = Cache::over(context.clone()).build();
    let plain = cache.dataset("plain").unwrap();
    for id in 1..=20 {
        let write = [("id", id), ("v", 100 + id)]
            .map(|(name, value)| (name.to_owned(), Parameter::Value(serde_json::json!(value))));
        let written = plain.write(&write.into_iter().collect()).await.unwrap();
        assert_eq!((written.rows, written.cache), (1, CacheState::Stored), "{id}");
        let case = Case { name: "plain", ..PLAIN };
        assert!(
            id != 1 || in_redis(&rig.client().await, &case).await.is_some_and(|value| value["name"] == "one")
        );
        let value: serde_json::Value = cache.get(&format!("plain:{id}")).await.unwrap().unwrap();
        assert_eq!(value["name"], "one", "{id}");
    }
}
