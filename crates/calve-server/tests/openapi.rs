//! `docs/openapi.json` is what the server describes.

#[test]
fn the_document_in_docs_is_the_one_of_the_server() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let document = calve_server::api::document().to_pretty_json().expect("a document is JSON") + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &document).expect("docs can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == document,
        "docs/openapi.json is stale: `UPDATE=1 cargo test -p calve-server --test openapi` makes it anew"
    );
}
