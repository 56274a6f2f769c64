//! Lists that are told in several messages, since one of all of them may be larger than a client takes (KEP-5825).

use prost::Message;
use tonic::Response;
use tonic::codegen::BoxStream;

/// Bytes of a message after which another is begun.
const ENOUGH: usize = 1 << 20;

/// The items in their order, in as few messages as makes sense; no message of no items.
pub(super) fn in_parts<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> Response<BoxStream<M>>
where
    T: Message + 'static,
    M: Send + 'static,
{
    let parts = parts(items).into_iter().map(move |part| Ok(message(part)));
    Response::new(Box::pin(tokio_stream::iter(parts)))
}

fn parts<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = item.encoded_len();
        match parts.last_mut() {
            Some(part) if size <= room => part.push(item),
            _ => {
                room = ENOUGH;
                parts.push(vec![item]);
            }
        }
        room = room.saturating_sub(size);
    }
    parts
}

#[cfg(test)]
mod tests {
    use hartpod_proto::cri::v1 as cri;

    use super::*;

    #[test]
    fn no_item_is_lost_and_none_is_cut() {
        let item = |bytes: usize| cri::Container { id: "x".repeat(bytes), ..Default::default() };
        let sizes = [10, ENOUGH * 2, 10, 20, ENOUGH / 2, ENOUGH / 2, 5];
        let told = parts(sizes.map(item).to_vec());
        let told: Vec<Vec<usize>> = told.iter().map(|p| p.iter().map(|i| i.id.len()).collect()).collect();
        assert_eq!(told, [vec![10], vec![ENOUGH * 2], vec![10, 20, ENOUGH / 2], vec![ENOUGH / 2, 5]]);
        assert!(parts(Vec::<cri::Container>::new()).is_empty());
    }
}
