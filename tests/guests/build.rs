//! Links at 1 MiB, as the built-in guest.

fn main() {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../arch/x86_64/hello/link.ld"
    );
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T{script}");
}
