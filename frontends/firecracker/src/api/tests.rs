use super::*;

fn ask(method: Method, path: &str, body: Option<&str>) -> Result<Asked, String> {
    let request = Request {
        method,
        path: path.to_owned(),
        body: body.map(|body| body.as_bytes().to_vec()),
        close: false,
    };
    route(&request).map_err(|error| error.to_string())
}

#[test]
fn paths_are_read_as_clients_write_them() {
    for (path, action) in [
        ("/", Action::GetInfo),
        ("", Action::GetInfo),
        ("//", Action::GetInfo),
        ("/version", Action::GetVersion),
        ("/version/", Action::GetVersion),
        ("/vm/config", Action::GetFullConfig),
        ("/machine-config/x/y", Action::GetMachineConfig),
        ("/balloon", Action::GetBalloon),
        ("/balloon/statistics", Action::GetBalloonStatistics),
        ("/balloon/hinting/status", Action::GetHintingStatus),
        ("/mmds", Action::GetMmds),
    ] {
        assert_eq!(
            ask(Method::Get, path, None).unwrap().action,
            action,
            "{path}"
        );
    }
    let vsock = r#"{"guest_cid":3,"uds_path":"v"}"#;
    let asked = ask(Method::Put, "/vsock/anything", Some(vsock)).unwrap();
    assert!(matches!(asked.action, Action::SetVsock(_)));
    assert_eq!(asked.deprecated, None);
    let vsock = r#"{"vsock_id":"1","guest_cid":3,"uds_path":"v"}"#;
    let asked = ask(Method::Put, "/vsock", Some(vsock)).unwrap();
    assert_eq!(
        asked.deprecated,
        Some("PUT /vsock: vsock_id field is deprecated.")
    );
    let start = ask(Method::Patch, "/balloon/hinting/start", None).unwrap();
    let acknowledged = StartHintingCmd::default();
    assert_eq!(start.action, Action::StartHinting(acknowledged));
    let start = ask(
        Method::Patch,
        "/balloon/hinting/start",
        Some(r#"{"acknowledge_on_stop":false}"#),
    );
    assert!(
        matches!(start.unwrap().action, Action::StartHinting(command) if !command.acknowledge_on_stop)
    );
    let unplug = ask(Method::Delete, "/drives/a", None).unwrap();
    assert_eq!(unplug.action, Action::Unplug);
}

#[test]
fn what_is_no_request_is_refused_in_the_words_that_clients_know() {
    let json = "An error occurred when deserializing the json body of a request: ";
    for (method, path, body, cause) in [
        (
            Method::Get,
            "/x/y",
            None,
            "Invalid request method and/or path: GET x.".to_owned(),
        ),
        (
            Method::Get,
            "/vm",
            None,
            "Invalid request method and/or path: GET vm.".to_owned(),
        ),
        (
            Method::Get,
            "/",
            Some("{}"),
            "GET request cannot have a body.".to_owned(),
        ),
        (
            Method::Put,
            "/drives/a",
            None,
            "Empty PUT request.".to_owned(),
        ),
        (
            Method::Put,
            "/x",
            Some("{}"),
            "Invalid request method and/or path: PUT x.".to_owned(),
        ),
        (
            Method::Patch,
            "/vm",
            None,
            "Empty PATCH request.".to_owned(),
        ),
        (
            Method::Patch,
            "/machine-config",
            Some("{}"),
            "Empty PATCH request.".to_owned(),
        ),
        (
            Method::Delete,
            "/x",
            None,
            "Invalid request method and/or path: DELETE x.".to_owned(),
        ),
        (
            Method::Delete,
            "/drives/a",
            Some("{}"),
            "Empty Delete request.".to_owned(),
        ),
        (
            Method::Put,
            "/drives",
            Some("{}"),
            "The ID cannot be empty.".to_owned(),
        ),
        (
            Method::Put,
            "/drives/a-b",
            Some("{}"),
            "API Resource IDs can only contain alphanumeric characters and underscores.".to_owned(),
        ),
        (
            Method::Put,
            "/drives/a",
            Some(r#"{"drive_id":"b","is_root_device":false}"#),
            "The id from the path does not match the id from the body!".to_owned(),
        ),
        (
            Method::Put,
            "/network-interfaces/a",
            Some(r#"{"iface_id":"b","host_dev_name":"t"}"#),
            "The id from the path [a] does not match the id from the body [b]!".to_owned(),
        ),
        (
            Method::Put,
            "/machine-config",
            Some(r#"{"mem_size_mib": 128}"#),
            format!("{json}missing field `vcpu_count` at line 1 column 21."),
        ),
        (
            Method::Put,
            "/machine-config",
            Some(r#"{"vcpu_count":-1,"mem_size_mib":1}"#),
            format!("{json}invalid value: integer `-1`, expected u8 at line 1 column 16."),
        ),
        (
            Method::Put,
            "/boot-source",
            Some(r#"{"kernel_image_path":"k","ht_enabled":true}"#),
            format!(
                "{json}unknown field `ht_enabled`, expected one of `kernel_image_path`, `initrd_path`, \
                 `boot_args` at line 1 column 37."
            ),
        ),
        (
            Method::Put,
            "/boot-source",
            Some("\"x\""),
            format!(
                "{json}invalid type: string \"x\", expected struct BootSourceConfig at line 1 column 3."
            ),
        ),
        (
            Method::Patch,
            "/vm",
            Some(r#"{"state":"foo"}"#),
            format!(
                "{json}unknown variant `foo`, expected `Paused` or `Resumed` at line 1 column 14."
            ),
        ),
        (
            Method::Put,
            "/actions",
            Some("{"),
            format!("{json}EOF while parsing an object at line 1 column 1."),
        ),
        (
            Method::Get,
            "/balloon/x",
            None,
            "Unrecognized GET request path `x`.".to_owned(),
        ),
        (
            Method::Patch,
            "/balloon/hinting",
            None,
            "Unrecognized PATCH request path `/hinting/`.".to_owned(),
        ),
    ] {
        assert_eq!(
            ask(method, path, body).unwrap_err(),
            cause,
            "{path} {body:?}"
        );
    }
}

/// Deep, huge or foreign: a body is refused or understood, whatever it is.
#[test]
fn r49_no_body_is_too_much() {
    let deep = "[".repeat(40_000);
    let long = format!(r#"{{"drive_id":"{}"}}"#, "x".repeat(40_000));
    for path in [
        "actions",
        "balloon",
        "boot-source",
        "cpu-config",
        "drives/a",
        "entropy",
        "logger",
        "machine-config",
        "metrics",
        "network-interfaces/a",
        "serial",
        "vsock",
    ] {
        for body in [&*deep, &long, "\0", "null", "1e999", "{\"\":"] {
            let method = Method::Put;
            let _ = ask(method, &format!("/{path}"), Some(body));
            let _ = ask(Method::Patch, &format!("/{path}"), Some(body));
        }
    }
}
