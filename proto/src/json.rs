//! How CRI messages look as JSON.

/// Left out of JSON, as Go's `omitempty` does.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes that are nearly always text: a string when they are UTF-8, a list of numbers otherwise, so that nothing is lost.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => bytes.serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Either::deserialize(deserializer)? {
            Either::Text(text) => text.into_bytes(),
            Either::Bytes(bytes) => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::cri::v1::{ContainerConfig, KeyValue, LinuxContainerConfig, Mount, PodSandboxConfig};

    fn sample() -> ContainerConfig {
        ContainerConfig {
            envs: vec![
                KeyValue { key: "A".into(), value: b"x=y".to_vec() },
                KeyValue { key: "B".into(), value: vec![0xff, 0] },
                KeyValue { key: "C".into(), value: Vec::new() },
            ],
            labels: [("empty".to_owned(), String::new())].into(),
            mounts: vec![Mount { host_path: "/h".into(), ..Mount::default() }],
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn a_config_survives_json() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert_eq!(serde_json::from_str::<ContainerConfig>(&text).unwrap(), sample());
    }

    #[test]
    fn empty_fields_are_left_out_but_map_entries_are_kept() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["labels"]["empty"], "");
        assert_eq!(json["envs"][0], serde_json::json!({"key": "A", "value": "x=y"}));
        assert!(json.get("image").is_none() && json.get("tty").is_none());
        assert_eq!(serde_json::to_string(&PodSandboxConfig::default()).unwrap(), "{}");
    }
}
