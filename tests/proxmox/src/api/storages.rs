//! Storages and what is uploaded to them.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::access::allowed;
use super::lists::checked;
use super::{Parameters, Refusal, User, answer};
use crate::Shared;
use crate::cluster::{STORAGES, storage as find_storage};
use crate::tasks::fork;

pub(super) async fn list(
    Path(node): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    checked(&node)?;
    let content = parameters.get("content");
    let takes = |it: &&crate::cluster::Storage| {
        content.is_none_or(|want| it.content.split(',').any(|has| has == want))
    };
    let shown = STORAGES.iter().filter(takes).map(|it| {
        json!({"storage": it.name, "type": it.kind, "content": it.content, "active": 1, "enabled": 1,
            "shared": u8::from(it.shared), "avail": 1u64 << 40, "total": 1u64 << 41, "used": 1u64 << 40})
    });
    Ok(answer(shown.collect()))
}

fn known(node: &str, storage: &str) -> Result<(), Refusal> {
    checked(node)?;
    match find_storage(storage) {
        Some(_) => Ok(()),
        None => Err(Refusal::died(format!("storage '{storage}' does not exist"))),
    }
}

pub(super) async fn upload(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, storage)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    known(&node, &storage)?;
    allowed(&shared, &format!("/storage/{storage}"), "Datastore.AllocateTemplate")?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let boundary = kind.split("boundary=").nth(1).map(|it| it.trim_matches('"'));
    let boundary = boundary.ok_or_else(|| Refusal::new(400, "no boundary"))?;
    let parts = parts(&body, boundary);
    let content = parts.iter().find(|part| part.name == "content").map(|part| part.bytes);
    if content != Some(b"iso") {
        return Err(Refusal::parameter("content", "upload content type not allowed"));
    }
    let file = parts.iter().find(|part| part.name == "filename" && part.file.is_some());
    let Some(file) = file else { return Err(Refusal::died("missing temporary file name")) };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let name: String = file.file.unwrap_or_default().chars().map(plain).collect();
    if !name.ends_with(".iso") && !name.ends_with(".img") {
        return Err(Refusal::parameter("filename", "wrong file extension"));
    }
    if !find_storage(&storage).is_some_and(|it| it.content.split(',').any(|it| it == "iso")) {
        return Err(Refusal::died(format!("storage '{storage}' does not support 'iso' content")));
    }
    let (bytes, volume) = (file.bytes.to_vec(), format!("{storage}:iso/{name}"));
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "imgcopy", "", &user, async move {
        tokio::time::sleep(doing.options.task).await;
        doing.state().files.insert((at, volume), bytes);
        Ok(())
    });
    Ok(answer(json!(upid)))
}

pub(super) async fn content(
    State(shared): State<Arc<Shared>>,
    Path((node, storage)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    known(&node, &storage)?;
    let state = shared.state();
    let here = state
        .files
        .iter()
        .filter(|((at, volume), _)| *at == node && volume.starts_with(&format!("{storage}:")));
    let shown = here.map(|((_, volume), bytes)| {
        json!({"volid": volume, "content": "iso", "format": "iso", "size": bytes.len(), "ctime": 0})
    });
    Ok(answer(shown.collect::<Vec<Value>>().into()))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, storage, volume)): Path<(String, String, String)>,
) -> Result<Response, Refusal> {
    known(&node, &storage)?;
    allowed(&shared, &format!("/storage/{storage}"), "Datastore.Allocate")?;
    let volume = if volume.contains(':') { volume } else { format!("{storage}:{volume}") };
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "imgdel", &storage.clone(), &user, async move {
        let _lock = doing.locks.storage(&storage, doing.options.lock_wait).await?;
        tokio::time::sleep(doing.options.task).await;
        // That it is not there is a warning only.
        doing.state().files.remove(&(at, volume));
        Ok(())
    });
    Ok(answer(json!(upid)))
}

/// A part of a form with files.
struct Part<'a> {
    name: String,
    file: Option<&'a str>,
    bytes: &'a [u8],
}

fn parts<'a>(body: &'a [u8], boundary: &str) -> Vec<Part<'a>> {
    let line = format!("--{boundary}");
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let mut rest = body;
    let mut found = Vec::new();
    while let Some(at) = find(rest, line.as_bytes()) {
        rest = &rest[at + line.len()..];
        let Some(head_end) = find(rest, b"\r\n\r\n") else { break };
        let head = std::str::from_utf8(&rest[..head_end]).unwrap_or_default();
        let contents = &rest[head_end + 4..];
        let Some(end) = find(contents, format!("\r\n{line}").as_bytes()) else { break };
        let quoted = |key: &str| {
            let (_, after) = head.split_once(&format!(" {key}=\""))?;
            after.split('"').next()
        };
        found.push(Part {
            name: quoted("name").unwrap_or_default().to_owned(),
            file: quoted("filename"),
            bytes: &contents[..end],
        });
        rest = &contents[end..];
    }
    found
}
