//! Holds `cri/v1/api.proto` and the table of Kubernetes' CRI (`cri/v1/cri-v1.tsv`) together: every RPC, field and
//! enum value of the one is in the other, with the same number and type.

#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const PACKAGE: &str = ".runtime.v1.";

/// What is declared, as one line each: the key says what, the value says how.
type Facts = BTreeMap<String, String>;

fn add(facts: &mut Facts, key: String, value: String) {
    if let Some(before) = facts.insert(key.clone(), value) {
        panic!("{key} is declared twice (first: {before})");
    }
}

fn from_table(table: &str) -> Facts {
    let mut facts = Facts::new();
    for (index, line) in table.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        match columns[..] {
            ["rpc", service, name, request, response] => {
                add(&mut facts, format!("rpc {service}.{name}"), format!("({request}) returns ({response})"));
            }
            ["field", message, name, number, kind] => {
                add(&mut facts, format!("field {message}.{name}"), format!("{kind} = {number}"));
            }
            ["value", name, value, number] => {
                add(&mut facts, format!("value {name}.{value}"), format!("= {number}"));
            }
            ["reserved", message, what] => add(&mut facts, format!("reserved {message}"), what.to_owned()),
            _ => panic!("line {} of the table is of no known form: {line:?}", index + 1),
        }
    }
    facts
}

fn from_descriptor(file: &FileDescriptorProto) -> Facts {
    let mut facts = Facts::new();
    for service in &file.service {
        for method in &service.method {
            let stream = |on: bool| if on { "stream " } else { "" };
            let value = format!(
                "({}{}) returns ({}{})",
                stream(method.client_streaming()),
                local(method.input_type()),
                stream(method.server_streaming()),
                local(method.output_type()),
            );
            add(&mut facts, format!("rpc {}.{}", service.name(), method.name()), value);
        }
    }
    for message in &file.message_type {
        message_facts(&mut facts, message);
    }
    for enumeration in &file.enum_type {
        enum_facts(&mut facts, enumeration, "");
    }
    facts
}

fn message_facts(facts: &mut Facts, message: &DescriptorProto) {
    assert!(message.oneof_decl.is_empty(), "CRI has no oneof, {} has", message.name());
    for range in &message.reserved_range {
        add(facts, format!("reserved {}", message.name()), format!("{}", range.start()));
    }
    for field in &message.field {
        let value = format!("{} = {}", kind(message, field), field.number());
        add(facts, format!("field {}.{}", message.name(), field.name()), value);
    }
    for enumeration in &message.enum_type {
        enum_facts(facts, enumeration, &format!("{}.", message.name()));
    }
    for nested in &message.nested_type {
        assert!(is_map_entry(nested), "CRI nests no messages, {} does", message.name());
    }
}

fn enum_facts(facts: &mut Facts, enumeration: &EnumDescriptorProto, scope: &str) {
    for value in &enumeration.value {
        let key = format!("value {scope}{}.{}", enumeration.name(), value.name());
        add(facts, key, format!("= {}", value.number()));
    }
}

/// The field's type as the table writes it.
fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let nested = message
        .nested_type
        .iter()
        .find(|n| field.type_name().ends_with(&format!(".{}.{}", message.name(), n.name())));
    let text = match nested.filter(|n| is_map_entry(n)) {
        Some(entry) => format!("map<{},{}>", base(message, &entry.field[0]), base(message, &entry.field[1])),
        None if field.label() == Label::Repeated => format!("repeated {}", base(message, field)),
        None => base(message, field),
    };
    let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
    if deprecated { format!("{text} deprecated") } else { text }
}

fn base(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => {
            let name = local(field.type_name());
            name.strip_prefix(&format!("{}.", message.name())).unwrap_or(name).to_owned()
        }
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn local(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap_or_else(|| panic!("{name} is not of package {PACKAGE}"))
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|o| o.map_entry())
}

fn differences(table: &Facts, ours: &Facts) -> Vec<String> {
    let keys: BTreeSet<&String> = table.keys().chain(ours.keys()).collect();
    keys.into_iter()
        .filter_map(|key| match (table.get(key), ours.get(key)) {
            (Some(wanted), None) => Some(format!("missing: {key}: {wanted}")),
            (None, Some(found)) => Some(format!("not in the table: {key}: {found}")),
            (Some(wanted), Some(found)) if wanted != found => {
                Some(format!("{key}: {found} instead of {wanted}"))
            }
            _ => None,
        })
        .collect()
}

fn root() -> &'static str {
    env!("CARGO_MANIFEST_DIR")
}

fn compiled() -> FileDescriptorProto {
    let set = protox::compile(["cri/v1/api.proto"], [root()]).unwrap();
    set.file.into_iter().find(|file| file.package() == "runtime.v1").unwrap()
}

fn table() -> String {
    std::fs::read_to_string(format!("{}/cri/v1/cri-v1.tsv", root())).unwrap()
}

#[test]
fn the_proto_declares_what_the_table_lists_and_nothing_else() {
    let (wanted, ours) = (from_table(&table()), from_descriptor(&compiled()));
    assert_eq!(wanted.keys().filter(|key| key.starts_with("rpc ")).count(), 41, "RPCs in the table");
    let found = differences(&wanted, &ours);
    assert!(found.is_empty(), "{} differences from cri-v1.tsv:\n{}", found.len(), found.join("\n"));
}

#[test]
fn messages_without_fields_exist_only_where_a_call_needs_one() {
    let file = compiled();
    let used: BTreeSet<&str> = file
        .service
        .iter()
        .flat_map(|service| &service.method)
        .flat_map(|method| [local(method.input_type()), local(method.output_type())])
        .collect();
    for message in file.message_type.iter().filter(|message| message.field.is_empty()) {
        assert!(used.contains(message.name()), "{} has no field and no call uses it", message.name());
    }
}

#[test]
fn every_kind_of_difference_is_told() {
    let wanted = from_table(&table());
    let mut file = compiled();
    file.service[0].method[6].server_streaming = None;
    file.message_type[0].field[0].number = Some(9);
    file.enum_type[0].value.pop();
    let extra = file.message_type[1].field[0].clone();
    file.message_type[2].field.push(FieldDescriptorProto { name: Some("extra".to_owned()), ..extra });
    let options = prost_types::FieldOptions { deprecated: Some(true), ..Default::default() };
    file.message_type[1].field[0].options = Some(options);
    let text = differences(&wanted, &from_descriptor(&file)).join("\n");
    let expected = "\
field DNSConfig.extra: string = 1
field VersionRequest.version: string = 9 instead of string = 1
field VersionResponse.version: string deprecated = 1 instead of string = 1
missing: value Protocol.SCTP: = 2
rpc RuntimeService.StreamPodSandboxes: ";
    for line in expected.lines() {
        assert!(text.contains(line), "{line} is not among:\n{text}");
    }
    assert_eq!(text.lines().count(), 5, "{text}");
}
