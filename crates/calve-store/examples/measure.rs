//! temporary
#![allow(missing_docs)]
use calve_store::*;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::path::PathBuf::from(&a[2]);
    let store = Store::open(&dir.join("store")).unwrap();
    match a[1].as_str() {
        "image" => {
            let t = Instant::now();
            let closure = Closure::new(vec![ClosurePath {
                path: calve_nix::StorePath::from_base_name(&format!("{:032}-x", 0)).unwrap(),
                host_path: a[3].clone().into(),
            }]);
            let image = store.image(&closure, &dir.join("images")).unwrap();
            println!("image {:?} {}", t.elapsed(), image.metadata().unwrap().len());
            let t = Instant::now();
            store.image(&closure, &dir.join("images")).unwrap();
            println!("again {:?}", t.elapsed());
        }
        "add" => {
            let t = Instant::now();
            let p = store.add(a[3].as_ref(), Some("x")).unwrap();
            println!("add {p} {:?}", t.elapsed());
            let t = Instant::now();
            store.add(a[3].as_ref(), Some("x")).unwrap();
            println!("again {:?}", t.elapsed());
        }
        _ => {}
    }
}
