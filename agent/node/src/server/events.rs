//! GetContainerEvents.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use hartpod_proto::cri::v1 as cri;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::{Server, container_view, pod_view};
use crate::events::{Event, Happened};
use crate::node::Node;

impl Server {
    /// All events from now on. A listener that is too far behind is told so by OUT_OF_RANGE, the end of the stream: it has missed some, has to list, and may begin anew.
    pub(super) fn events(&self) -> BoxStream<cri::ContainerEventResponse> {
        let (node, events) = (self.node.clone(), self.node.events.listen());
        let told = stream::unfold(Some(events), move |events| {
            let node = node.clone();
            async move {
                let mut events = events?;
                match events.recv().await {
                    Ok(event) => Some((Ok(response(&node, event)), Some(events))),
                    Err(RecvError::Lagged(missed)) => Some((Err(too_slow(missed)), None)),
                    Err(RecvError::Closed) => None,
                }
            }
        });
        told.boxed()
    }
}

fn too_slow(missed: u64) -> Status {
    Status::out_of_range(format!(
        "{missed} events were not read in time: list pods and containers, then ask again"
    ))
}

fn response(node: &Arc<Node>, event: Event) -> cri::ContainerEventResponse {
    let kind = match event.happened {
        Happened::Created => cri::ContainerEventType::ContainerCreatedEvent,
        Happened::Started => cri::ContainerEventType::ContainerStartedEvent,
        Happened::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        Happened::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let status =
        |container| container_view::status(container, container_view::image(&node.images, &container.info));
    // Of a deleted pod its own last status is left: the kubelet passes over events without one.
    let is_gone = event.happened == Happened::Deleted && event.id == event.pod.info.id.as_str();
    cri::ContainerEventResponse {
        container_id: event.id,
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: pod_view::status(&event.pod),
        containers_statuses: match is_gone {
            true => Vec::new(),
            false => event.pod.containers.iter().filter_map(|c| status(c)).collect(),
        },
    }
}
