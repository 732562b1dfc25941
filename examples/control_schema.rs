//! Prints the JSON Schema of the control socket: `docs/control-schema.json` is what it prints.

fn main() -> Result<(), serde_json::Error> {
    let schema = vmm_reference::control_schema();
    println!("{}", serde_json::to_string_pretty(&schema)?);
    Ok(())
}
