//! What a user's words resolve to, with the real `nix` where a form needs it: seen in the request that the server gets.

mod fake;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fake::{Fake, finish, static_program, stderr};
use serde_json::{Value, json};

/// No downloads and no build users: everything is built from what lies here.
const NIX_CONFIG: &str =
    "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command flakes";

/// Packages made with a static shell alone.
const DEFAULT_NIX: &str = r#"
let
  tools = builtins.path { path = ./tools; name = "tools"; };
  build = name: script: derivation {
    inherit name;
    system = builtins.currentSystem or "x86_64-linux";
    builder = "${tools}/bin/bash";
    args = [ "-c" script ];
    PATH = "${tools}/bin";
  };
  two = build "two-1.0" "busybox mkdir -p $out/bin; busybox cp ${tools}/bin/busybox $out/bin/a; busybox cp ${tools}/bin/busybox $out/bin/b";
in {
  inherit two;
  hello = build "hello-1.0" "busybox mkdir -p $out/bin; busybox cp ${tools}/bin/busybox $out/bin/hello; busybox ln -s hello $out/bin/ls";
  main = two // { meta.mainProgram = "b"; };
  system = build "nixos-system-standin" "busybox mkdir $out; busybox touch $out/init $out/kernel $out/initrd $out/kernel-params";
  broken = build "broken" "exit 3";
  env = derivation {
    name = "env";
    system = "x86_64-linux";
    builder = "${tools}/bin/bash";
    args = [ "-c" "exit 1" ];
    outputs = [ "out" ];
    PATH = "${tools}/bin";
    stdenv = build "stdenv" "busybox mkdir $out; echo 'export FOO=bar' > $out/setup";
    shellHook = "export HOOKED=1";
  };
}
"#;

const FLAKE_NIX: &str = "{ outputs = { self }: let all = import ./default.nix; in { packages.x86_64-linux = \
                         { inherit (all) main env; default = all.hello; }; }; }";

/// A directory with the Nix files.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("tools/bin")).unwrap();
    fs::copy(static_program(), dir.path().join("tools/bin/busybox")).unwrap();
    fs::copy("/bin/bash-static", dir.path().join("tools/bin/bash")).expect("these tests need bash-static");
    fs::write(dir.path().join("default.nix"), DEFAULT_NIX).unwrap();
    fs::write(dir.path().join("flake.nix"), FLAKE_NIX).unwrap();
    dir
}

fn nix_is_here() -> bool {
    let here = Command::new("nix").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(here || std::env::var_os("CI").is_none(), "these tests need nix");
    if !here {
        eprintln!("skipped: there is no nix on this host");
    }
    here
}

fn calve_in(fake: &Fake, dir: &Path, args: &[&str]) -> Output {
    finish(fake.calve(args).current_dir(dir).env("NIX_CONFIG", NIX_CONFIG))
}

/// The spec of the machine that `calve run -d` with these arguments asks for.
fn spec_in(dir: &Path, args: &[&str]) -> Value {
    let fake = Fake::start();
    let output = calve_in(&fake, dir, &[&["run", "-d"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    fake.body("POST /v1/machines")["spec"].clone()
}

fn path_in(dir: &Path, args: &[&str]) -> String {
    let spec = spec_in(dir, args);
    let path = spec["workload"]["path"].as_str().unwrap_or_else(|| panic!("{spec}"));
    path["/nix/store/".len() + 33..].to_owned()
}

/// The exit code and what is said.
fn refusal_in(dir: &Path, args: &[&str]) -> (i32, String) {
    let fake = Fake::start();
    let output = calve_in(&fake, dir, &[&["run", "-d"], args].concat());
    assert!(fake.requests().is_empty(), "{args:?}");
    (output.status.code().unwrap(), stderr(&output))
}

fn run(dir: &Path, program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).current_dir(dir).env("NIX_CONFIG", NIX_CONFIG).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn plain_files_and_trees_go_to_the_store_under_the_path_that_nix_gives() {
    let dir = project();
    fs::create_dir_all(dir.path().join("app/bin")).unwrap();
    fs::copy(static_program(), dir.path().join("app/bin/tool")).unwrap();
    std::os::unix::fs::symlink("tool", dir.path().join("app/bin/ls")).unwrap();
    fs::copy(static_program(), dir.path().join("lone")).unwrap();
    assert_eq!(path_in(dir.path(), &["./app/bin/tool"]), "app/bin/tool");
    assert_eq!(path_in(dir.path(), &["app/bin/ls"]), "app/bin/ls");
    assert_eq!(path_in(&dir.path().join("app/bin"), &["./tool"]), "app/bin/tool");
    assert_eq!(path_in(dir.path(), &["./lone"]), "lone");
    if nix_is_here() {
        let added = run(dir.path(), "nix-store", &["--add", "./app"]);
        let spec = spec_in(dir.path(), &["./app/bin/tool"]);
        assert_eq!(spec["workload"]["path"], json!(format!("{added}/bin/tool")));
    }
}

#[test]
fn what_cannot_be_run_is_said_before_anything_is_asked() {
    let dir = project();
    fs::write(dir.path().join("text"), "x").unwrap();
    let (code, said) = refusal_in(dir.path(), &["./text"]);
    assert_eq!(code, 126);
    assert!(said.contains("is not executable\nhint: if it is a program: chmod +x"), "{said}");
    assert_eq!(refusal_in(dir.path(), &["./none"]).0, 127);
    assert_eq!(refusal_in(dir.path(), &["/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-gone/bin/x"]).0, 127);
    assert_eq!(refusal_in(dir.path(), &["tools", "--", "-c"]).0, 2);
    assert_eq!(refusal_in(dir.path(), &["--shell", "default.nix"]).0, 2);
    assert_eq!(refusal_in(dir.path(), &["-e", "CALVE_TEST_NOT_SET", "./lone"]).0, 2);
}

#[test]
fn without_nix_the_forms_that_need_it_say_so() {
    let dir = project();
    for args in [&["-A", "hello"][..], &[".#main"], &["--shell", "-A", "env", "--", "make"]] {
        let fake = Fake::start();
        let output = finish(
            fake.calve(&[&["run"], args].concat()).current_dir(dir.path()).env("PATH", "/nonexistent"),
        );
        assert_eq!(output.status.code(), Some(125));
        assert!(stderr(&output).contains("this needs Nix"), "{}", stderr(&output));
        assert!(stderr(&output).contains("hint: install Nix"), "{}", stderr(&output));
    }
}

#[test]
fn attributes_are_built_and_links_to_store_paths_are_followed_into_the_store_only() {
    if !nix_is_here() {
        return;
    }
    let dir = project();
    let spec = spec_in(dir.path(), &["-A", "hello", "--", "--greeting", "hi"]);
    assert!(spec["workload"]["path"].as_str().unwrap().ends_with("-hello-1.0/bin/hello"));
    assert_eq!(spec["workload"]["args"], json!(["--greeting", "hi"]));
    assert_eq!(spec["source"], json!({"given": "-A hello", "revision": null}));
    assert_eq!(path_in(dir.path(), &["-A", "main", "default.nix"]), "two-1.0/bin/b");
    let system = spec_in(dir.path(), &["-A", "system"]);
    assert_eq!((&system["kind"], &system["workload"]["type"]), (&json!("system"), &json!("system")));
    let (code, said) = refusal_in(dir.path(), &["-A", "two"]);
    assert_eq!((code, said.contains("hint: name one behind /bin/: a, b")), (2, true), "{said}");
    let (code, said) = refusal_in(dir.path(), &["-A", "broken"]);
    assert_eq!((code, said.contains("error: nix-build failed")), (125, true), "{said}");

    run(dir.path(), "nix-build", &["-A", "hello"]);
    assert_eq!(path_in(dir.path(), &["./result"]), "hello-1.0/bin/hello");
    assert_eq!(path_in(dir.path(), &["./result/bin/ls"]), "hello-1.0/bin/ls");
    let store_path = fs::read_link(dir.path().join("result")).unwrap().display().to_string();
    assert_eq!(path_in(dir.path(), &[&store_path]), "hello-1.0/bin/hello");
    assert_eq!(path_in(dir.path(), &[&format!("{store_path}/bin/ls")]), "hello-1.0/bin/ls");
    let (code, said) = refusal_in(dir.path(), &["./result/bin"]);
    assert_eq!((code, said.contains("is a directory")), (126, true), "{said}");
}

#[test]
fn flakes_are_built_with_their_revision_recorded() {
    if !nix_is_here() {
        return;
    }
    let dir = project();
    for args in [
        &["init", "-q"][..],
        &["add", "."],
        &["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x"],
    ] {
        run(dir.path(), "git", args);
    }
    let revision = run(dir.path(), "git", &["rev-parse", "HEAD"]);
    let spec = spec_in(dir.path(), &[".#main"]);
    assert!(spec["workload"]["path"].as_str().unwrap().ends_with("-two-1.0/bin/b"), "{spec}");
    assert_eq!(spec["source"], json!({"given": ".#main", "revision": revision}));
    let url = format!("git+file://{}?rev={revision}", dir.path().display());
    let spec = spec_in(dir.path(), &[&url]);
    assert!(spec["workload"]["path"].as_str().unwrap().ends_with("-hello-1.0/bin/hello"), "{spec}");
    assert_eq!(spec["source"]["revision"], json!(revision));
    // A work tree with changes is built as it is, and has no revision.
    fs::write(dir.path().join("tools/bin/new"), "").unwrap();
    run(dir.path(), "git", &["add", "."]);
    assert_eq!(spec_in(dir.path(), &["."])["source"]["revision"], json!(null));
    assert_eq!(refusal_in(dir.path(), &[".#nothing"]).0, 125);
}

#[test]
fn a_command_runs_in_a_shell_s_environment_and_a_copy_of_its_directory() {
    if !nix_is_here() {
        return;
    }
    let dir = project();
    let spec =
        spec_in(dir.path(), &["--shell", "-A", "env", "default.nix", "-e", "MINE=1", "--", "make", "-j"]);
    let program = &spec["workload"];
    let args: Vec<_> = program["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    assert!(program["path"].as_str().unwrap().ends_with("-tools/bin/bash"), "{program}");
    assert_eq!((args[0], &args[2..]), ("-c", &["bash", "make", "-j"][..]));
    let env = &program["env"];
    assert_eq!(
        (&env["FOO"], &env["shellHook"], &env["MINE"]),
        (&json!("bar"), &json!("export HOOKED=1"), &json!("1"))
    );
    assert!(env["PATH"].as_str().unwrap().ends_with("-tools/bin"));
    assert_eq!((&env["HOME"], &env["NIX_BUILD_TOP"]), (&json!(null), &json!(null)));
    let roots = program["extra_roots"].as_array().unwrap();
    assert!(roots.iter().any(|root| root.as_str().unwrap().ends_with("-stdenv")), "{roots:?}");
    assert_eq!(program["cwd"], json!("/work"));
    assert!(program["work_tree"].as_str().unwrap().ends_with("-work"));
    assert_eq!(spec["source"]["given"], json!("--shell -A env default.nix"));

    let spec = spec_in(dir.path(), &["--shell", &format!("path:{}#env", dir.path().display()), "--", "true"]);
    assert_eq!((&spec["workload"]["cwd"], &spec["workload"]["env"]["FOO"]), (&json!("/work"), &json!("bar")));
}
