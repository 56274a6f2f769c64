//! The streams of a connection.

use std::collections::HashMap;

use super::StreamId;
use super::frame::{self, Replies, ResetStatus};
use super::headers::{HeaderError, Headers};
use super::stream::Opened;
use crate::wire::{Chunk, Feed, inbound};

/// Streams of a connection that may be open at one time; a forwarded port takes two.
pub(crate) const MOST_STREAMS: usize = 2048;

/// Which streams are open, and in which direction. Methods that answer give the frame to be sent.
#[derive(Debug, Default)]
pub(crate) struct Table {
    streams: HashMap<StreamId, Halves>,
    /// The highest number so far.
    last: StreamId,
    replies: Replies,
    /// The client opens no more.
    going_away: bool,
}

/// An open stream.
#[derive(Debug)]
struct Halves {
    /// Where the client's bytes go, until it ends its half.
    feed: Option<Feed>,
    /// Whether ours is open.
    outbound: bool,
}

/// The client opened a stream of a number that it may not open.
#[derive(Debug)]
pub(crate) struct BadNumber;

/// What is to be done about a stream that the client opened.
#[derive(Debug)]
pub(crate) enum Admission {
    Opened(Opened),
    Refused(Vec<u8>),
    Ignored,
}

/// What is to be done about bytes.
#[derive(Debug)]
pub(crate) enum DataFor {
    /// Somebody may want them.
    Open,
    /// Nobody does; the client could not know that yet.
    Nobody,
    Refused(Vec<u8>),
}

impl Table {
    pub(crate) fn last(&self) -> StreamId {
        self.last
    }

    pub(crate) fn go_away(&mut self) {
        self.going_away = true;
    }

    /// Whether the client has said that it opens no more, and has none.
    pub(crate) fn is_over(&self) -> bool {
        self.going_away && self.streams.is_empty()
    }

    /// The client opens a stream.
    pub(crate) fn open(
        &mut self,
        id: StreamId,
        headers: Result<Headers, HeaderError>,
        fin: bool,
    ) -> Result<Admission, BadNumber> {
        if id.0 % 2 == 0 || id <= self.last {
            return Err(BadNumber);
        }
        self.last = id;
        if self.going_away {
            return Ok(Admission::Ignored);
        }
        if self.streams.len() >= MOST_STREAMS {
            return Ok(Admission::Refused(frame::reset(id, ResetStatus::RefusedStream)));
        }
        let Ok(headers) = headers else {
            return Ok(Admission::Refused(frame::reset(id, ResetStatus::ProtocolError)));
        };
        let (feed, inbound) = inbound();
        let feed = if fin {
            feed.end();
            None
        } else {
            Some(feed)
        };
        self.streams.insert(id, Halves { feed, outbound: true });
        Ok(Admission::Opened(Opened { id, headers, inbound }))
    }

    /// The reply to a stream, unless it is over already.
    pub(crate) fn reply(&mut self, id: StreamId) -> Option<Vec<u8>> {
        self.streams.contains_key(&id).then(|| self.replies.next(id))
    }

    pub(crate) fn data_for(&mut self, id: StreamId) -> DataFor {
        match self.streams.get(&id) {
            Some(Halves { feed: Some(_), .. }) => DataFor::Open,
            Some(Halves { feed: None, .. }) => {
                self.streams.remove(&id);
                DataFor::Refused(frame::reset(id, ResetStatus::StreamAlreadyClosed))
            }
            None if id > self.last => DataFor::Refused(frame::reset(id, ResetStatus::InvalidStream)),
            None => DataFor::Nobody,
        }
    }

    pub(crate) fn data(&mut self, id: StreamId, chunk: Chunk) {
        if let Some(Halves { feed: Some(feed), .. }) = self.streams.get(&id) {
            feed.data(chunk);
        }
    }

    /// The client ends its half.
    pub(crate) fn end_inbound(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(feed) = stream.feed.take() {
            feed.end();
        }
        if !stream.outbound {
            self.streams.remove(&id);
        }
    }

    /// The client ends the whole stream.
    pub(crate) fn end(&mut self, id: StreamId) {
        self.streams.remove(&id);
    }

    pub(crate) fn is_outbound_open(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.outbound)
    }

    /// We end our half.
    pub(crate) fn finish(&mut self, id: StreamId) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.outbound)?;
        stream.outbound = false;
        if stream.feed.is_none() {
            self.streams.remove(&id);
        }
        Some(frame::data_header(id, frame::FIN, 0).to_vec())
    }

    /// We end our half, and whatever the client still says is for nobody.
    pub(crate) fn leave(&mut self, id: StreamId) -> Option<Vec<u8>> {
        let frame = self.finish(id);
        self.streams.remove(&id);
        frame
    }

    /// We end the whole stream.
    pub(crate) fn reset(&mut self, id: StreamId, status: ResetStatus) -> Option<Vec<u8>> {
        self.streams.remove(&id).map(|_| frame::reset(id, status))
    }

    /// We end all streams.
    pub(crate) fn reset_all(&mut self) -> Vec<u8> {
        let mut ids = std::mem::take(&mut self.streams).into_keys().collect::<Vec<_>>();
        ids.sort_unstable();
        ids.into_iter().flat_map(|id| frame::reset(id, ResetStatus::Cancel)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(table: &mut Table, id: u32) -> Opened {
        match table.open(StreamId(id), Ok(Headers::default()), false) {
            Ok(Admission::Opened(opened)) => opened,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_are_odd_and_rise() {
        let mut table = Table::default();
        let _streams = [opened(&mut table, 1), opened(&mut table, 7)];
        for id in [0, 2, 1, 3, 7, 8] {
            assert!(table.open(StreamId(id), Ok(Headers::default()), false).is_err(), "{id}");
        }
    }

    #[test]
    fn a_stream_is_gone_when_both_halves_are() {
        let mut table = Table::default();
        let _streams = [opened(&mut table, 1), opened(&mut table, 3), opened(&mut table, 5)];
        table.end_inbound(StreamId(1));
        assert!(table.finish(StreamId(1)).is_some());
        assert!(table.finish(StreamId(3)).is_some());
        assert!(table.finish(StreamId(3)).is_none());
        assert!(!table.is_outbound_open(StreamId(3)));
        table.end_inbound(StreamId(3));
        assert_eq!(table.streams.len(), 1);
        assert_eq!(table.reset_all(), frame::reset(StreamId(5), ResetStatus::Cancel));
    }

    #[test]
    fn bytes_for_a_stream_that_was_never_there_are_refused() {
        let mut table = Table::default();
        let _stream = opened(&mut table, 3);
        assert!(matches!(table.data_for(StreamId(3)), DataFor::Open));
        assert!(matches!(table.data_for(StreamId(5)), DataFor::Refused(_)));
        table.end(StreamId(3));
        assert!(matches!(table.data_for(StreamId(3)), DataFor::Nobody));
    }

    #[test]
    fn it_is_over_when_the_client_goes_and_has_no_streams() {
        let mut table = Table::default();
        let _stream = opened(&mut table, 1);
        table.go_away();
        assert!(!table.is_over());
        table.end(StreamId(1));
        assert!(table.is_over());
    }

    #[test]
    fn a_stream_that_we_leave_takes_no_place_and_what_comes_on_it_is_dropped() {
        let mut table = Table::default();
        let _streams = [opened(&mut table, 1), opened(&mut table, 3)];
        assert_eq!(table.leave(StreamId(1)), Some(frame::data_header(StreamId(1), frame::FIN, 0).to_vec()));
        table.finish(StreamId(3));
        assert!(table.leave(StreamId(3)).is_none());
        assert_eq!(table.streams.len(), 0);
        assert!(matches!(table.data_for(StreamId(1)), DataFor::Nobody));
        assert!(table.leave(StreamId(1)).is_none());
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut table = Table::default();
        let _stream = opened(&mut table, 1);
        table.end_inbound(StreamId(1));
        let DataFor::Refused(frame) = table.data_for(StreamId(1)) else { panic!() };
        assert_eq!(frame, frame::reset(StreamId(1), ResetStatus::StreamAlreadyClosed));
    }

    #[test]
    fn there_is_a_most_of_streams() {
        let mut table = Table::default();
        let streams = (0..2048).map(|n| opened(&mut table, 2 * n + 1)).collect::<Vec<_>>();
        let more = table.open(StreamId(5001), Ok(Headers::default()), false);
        assert!(matches!(more, Ok(Admission::Refused(_))));
        table.end(streams[0].id);
        opened(&mut table, 5003);
    }
}
