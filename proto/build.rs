//! Compiles the two protocols without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    for (file, feature) in [("pod/v1/pod.proto", None), ("cri/v1/api.proto", Some("CARGO_FEATURE_CRI"))] {
        println!("cargo:rerun-if-changed={file}");
        if feature.is_some_and(|f| std::env::var_os(f).is_none()) {
            continue;
        }
        let descriptors = protox::compile([file], ["."])?;
        // Ordered maps: equal messages have equal encodings, which is what requests are compared by.
        let builder = tonic_prost_build::configure().build_transport(false).btree_map(".");
        json(builder).compile_fds(descriptors)?;
    }
    Ok(())
}

/// What a pod and a container are asked to be is kept in records and shown by `crictl inspect`, as JSON of the form that Go
/// gives these messages: names as in the protocol, nothing that is empty.
fn json(mut builder: tonic_prost_build::Builder) -> tonic_prost_build::Builder {
    for message in JSON_MESSAGES {
        let path = format!(".runtime.v1.{message}");
        // The path of this message would match the values of the enum in it, too.
        let fields = match message {
            "SecurityProfile" => vec![format!("{path}.profile_type"), format!("{path}.localhost_ref")],
            _ => vec![path.clone()],
        };
        builder = builder
            .message_attribute(&path, "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]");
        for field in fields {
            builder =
                builder.field_attribute(field, "#[serde(skip_serializing_if = \"crate::json::is_default\")]");
        }
    }
    builder
        .field_attribute(".runtime.v1.PodSandboxConfig.windows", "#[serde(skip)]")
        .field_attribute(".runtime.v1.ContainerConfig.windows", "#[serde(skip)]")
        .field_attribute(".runtime.v1.KeyValue.value", "#[serde(with = \"crate::json::text\")]")
        .field_attribute(".runtime.v1.Mount.uidMappings", "#[serde(rename = \"uidMappings\")]")
        .field_attribute(".runtime.v1.Mount.gidMappings", "#[serde(rename = \"gidMappings\")]")
        .field_attribute(".runtime.v1.ContainerConfig.CDI_devices", "#[serde(rename = \"CDI_devices\")]")
}

/// PodSandboxConfig and ContainerConfig with all that they contain.
const JSON_MESSAGES: [&str; 27] = [
    "CDIDevice",
    "Capability",
    "ContainerConfig",
    "ContainerMetadata",
    "DNSConfig",
    "Device",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "Int64Value",
    "KeyValue",
    "LinuxContainerConfig",
    "LinuxContainerResources",
    "LinuxContainerSecurityContext",
    "LinuxContainerUser",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "Mount",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "SELinuxOption",
    "SecurityProfile",
    "UserNamespace",
    "RuntimeHandlerFeatures",
    "RuntimeHandler",
];
