//! Real Nix builds what is run.

use std::process::Command;

use e2e::Home;

/// One test takes a store path away for a moment.
static STORE: std::sync::Mutex<()> = std::sync::Mutex::new(());

const CONFIG: &str =
    "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command flakes";

/// A flake and a default.nix that need no nixpkgs: a static busybox as a derivation with its own reference.
fn project(home: &Home) -> std::path::PathBuf {
    let dir = home.path().join("project");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy("/bin/bash-static", dir.join("bash")).unwrap();
    std::fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
    let builder = r#"
        box() { (exec -a busybox $busybox "$@"); }
        box mkdir -p $out/bin
        box cp $busybox $out/bin/busybox
        box chmod 755 $out/bin/busybox
        printf '#!%s\necho "built by nix: $*"\n' $bash > $out/bin/web
        box chmod 755 $out/bin/web
    "#;
    std::fs::write(dir.join("builder.sh"), builder).unwrap();
    std::fs::write(
        dir.join("default.nix"),
        "rec { web = derivation { name = \"web\"; system = \"x86_64-linux\"; builder = ./bash; args = [ ./builder.sh ];
           bash = ./bash; busybox = ./busybox; };
           stdenv = derivation { name = \"stdenv\"; system = \"x86_64-linux\"; builder = ./bash;
             args = [ \"-c\" ''(exec -a busybox $busybox mkdir -p $out); echo 'export GREETING=from-the-shell' > $out/setup'' ];
             busybox = ./busybox; };
           env = derivation { name = \"env\"; system = \"x86_64-linux\"; builder = \"${bash}/bin/bash\"; inherit stdenv; args = [ ]; outputs = [ \"out\" ]; PATH = \"${bash}/bin\"; };
           bash = derivation { name = \"bash\"; system = \"x86_64-linux\"; builder = ./bash;
             args = [ \"-c\" ''box() { (exec -a busybox $busybox \"$@\"); }; box mkdir -p $out/bin; box cp $bash $out/bin/bash; box chmod 755 $out/bin/bash'' ];
             bash = ./bash; busybox = ./busybox; };
         }",
    )
    .unwrap();
    std::fs::write(
        dir.join("flake.nix"),
        "{ outputs = { self }: { packages.x86_64-linux = { inherit (import ./default.nix) web; }; }; }",
    )
    .unwrap();
    dir
}

fn git(dir: &std::path::Path, args: &[&str]) -> String {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
    let output = Command::new("git").current_dir(dir).args(identity).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn closures_are_built_by_the_users_own_nix() {
    let _store = STORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let home = Home::new();
    let dir = project(&home);
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.current_dir(&dir).env("NIX_CONFIG", CONFIG);
        e2e::Ran::of(command)
    };
    let ran = run(&["run", "-A", "web", "default.nix", "--", "by", "attr"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "built by nix: by attr\n"), "{ran:?}");

    // The same through the ./result link and as a bare store path.
    let built =
        Command::new("nix-build").args(["-A", "web"]).current_dir(&dir).env("NIX_CONFIG", CONFIG).output();
    let path = String::from_utf8_lossy(&built.unwrap().stdout).trim().to_owned();
    for argument in ["./result", &path, &format!("{path}/bin/web")] {
        let ran = run(&["run", argument, "--", "again"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "built by nix: again\n"), "{argument}: {ran:?}");
    }

    // A flake, by directory and by pinned Git revision.
    git(&dir, &["init", "-q"]);
    git(&dir, &["add", "flake.nix", "default.nix", "builder.sh", "bash", "busybox"]);
    git(&dir, &["commit", "-qm", "one"]);
    let revision = git(&dir, &["rev-parse", "HEAD"]);
    let ran = run(&["run", ".#web", "--", "flake"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "built by nix: flake\n"), "{ran:?}");
    let pinned = format!("git+file://{}?rev={revision}#web", dir.display());
    let ran = run(&["run", "--name", "pinned", &pinned, "--", "git"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "built by nix: git\n"), "{ran:?}");
    assert_eq!(home.json(&["status", "pinned"])["spec"]["source"]["revision"], revision.as_str());

    // A command inside a Nix shell's environment.
    let ran = run(&[
        "run",
        "--shell",
        "-A",
        "env",
        "default.nix",
        "--",
        "bash",
        "-c",
        "echo $GREETING; pwd; [ -e default.nix ] && echo here",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("from-the-shell\n") && ran.stdout.ends_with("here\n"), "{ran:?}");
}

#[test]
fn an_incomplete_closure_is_refused_by_name() {
    let _store = STORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let home = Home::new();
    let dir = project(&home);
    let built = Command::new("nix-build")
        .args(["--no-out-link", "-A", "web"])
        .current_dir(&dir)
        .env("NIX_CONFIG", CONFIG)
        .output()
        .unwrap();
    let path = String::from_utf8_lossy(&built.stdout).trim().to_owned();
    let references = Command::new("nix-store").args(["-q", "--references", &path]).output().unwrap();
    let bash = String::from_utf8_lossy(&references.stdout)
        .lines()
        .find(|l| l.ends_with("-bash"))
        .unwrap()
        .to_owned();
    let aside = home.path().join("aside");
    copy_aside(&bash, &aside);
    let ran = home.run(&["run", &path]);
    let restored = Command::new("cp").arg("-a").arg(&aside).arg(&bash).status().unwrap();
    assert!(restored.success());
    assert!(ran.code != 0 && ran.stderr.contains(&bash), "{ran:?}");
}

#[test]
fn a_living_machine_holds_its_closure_against_garbage_collection() {
    let _store = STORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let home = Home::new();
    // A path of this test alone.
    let tree = home.path().join("held");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::fs::write(tree.join("home"), home.path().to_str().unwrap()).unwrap();
    let nix_store = |args: &[&str]| {
        let mut command = Command::new("nix-store");
        command.args(args).env("NIX_CONFIG", CONFIG);
        e2e::Ran::of(command)
    };
    let path = nix_store(&["--add", tree.to_str().unwrap()]).stdout.trim().to_owned();
    home.ok(&["run", "-d", "--name", "holder", &format!("{path}/bin/busybox"), "--", "sleep", "600"]);
    home.wait_for_running("holder");
    let held = || {
        let roots = nix_store(&["--gc", "--print-roots"]).stdout;
        let ours = |line: &&str| line.contains(home.path().to_str().unwrap()) && line.contains("/roots/");
        roots.lines().filter(ours).any(|line| line.ends_with(&path))
    };
    assert!(held());
    // A collection between two servers spares it as well.
    home.kill_server();
    assert!(held());
    let refused = nix_store(&["--delete", &path]);
    assert!(refused.code != 0, "{refused:?}");
    home.ok(&["stop", "holder"]);
    assert!(!held());
    let deleted = nix_store(&["--delete", &path]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
}

/// Moves a path, also across file systems.
fn copy_aside(from: &str, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    assert!(Command::new("rm").arg("-rf").arg(from).status().unwrap().success());
}
