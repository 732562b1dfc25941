//! Links as the built-in guest: a flat Image.

fn main() {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../arch/riscv64/hello/link.ld"
    );
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    println!("cargo::rustc-link-arg-bins=-pie");
}
