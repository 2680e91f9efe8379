//! Compiles the `.proto` files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "envoy/service/discovery/v3/discovery.proto",
        "weft/v1/service.proto",
        "weft/v1/endpoints.proto",
        "weft/v1/workload.proto",
        "weft/v1/observe.proto",
        "weft/v1/trust.proto",
        "weft/identity/v1/identity.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    for dir in ["envoy", "google", "weft"] {
        println!("cargo:rerun-if-changed={dir}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let services = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(services)
        .build_server(services)
        .build_transport(false)
        .include_file("weft_proto.rs")
        // The encoded resource is one buffer, shared by every stream that it is sent on.
        .bytes(".weft")
        .bytes(".google.protobuf.Any")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Duration", "::prost_types::Duration")
        .compile_fds(descriptors)?;
    Ok(())
}
