//! The newest messages of a chat as they are served: JSON, and where each message ends in it.

use axum::body::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use uuid::Uuid;

use super::super::answer::{self, Rendered};
use super::{Message, Page};

/// What L1 and L2 hold of a chat.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) company: i64,
    /// Whether there are older messages than these.
    older: bool,
    digest: [u8; 16],
    /// The page of all of them: `{"chat":"…","messages":[`, message after message with commas in between, and how it ends.
    json: Bytes,
    /// Where the first message begins.
    first: u32,
    marks: Vec<Mark>,
}

/// A message of the window.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    id: i64,
    created_at_us: i64,
    /// Where it ends in the JSON.
    end: u32,
}

/// A row of the load: a chat has one without a message where it has none.
#[derive(Debug, FromRow)]
pub(super) struct Line {
    pub(super) chat: Uuid,
    company_id: i64,
    id: Option<i64>,
    sender: Option<String>,
    body: Option<String>,
    created_at: Option<DateTime<Utc>>,
}

/// The messages of a window that answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    from: usize,
    to: usize,
    more: bool,
}

impl Window {
    /// Of the lines of one chat, the newest first, of which `size` are kept, or as many as are a page.
    pub(super) fn of(lines: &[Line], size: usize) -> (Uuid, Self) {
        let (chat, company) = lines.first().map_or((Uuid::nil(), 0), |line| (line.chat, line.company_id));
        let mut json = format!("{{\"chat\":\"{chat}\",\"messages\":[").into_bytes();
        let first = position(&json);
        let mut marks = Vec::with_capacity(lines.len().min(size));
        let text = |line: &Line| line.body.as_ref().map_or(0, String::len);
        let size = super::fitting(lines.iter().map(text), size);
        for line in lines.iter().take(size) {
            let Some(message) = line.message() else { continue };
            if !marks.is_empty() {
                json.push(b',');
            }
            json.extend(serde_json::to_vec(&message).unwrap_or_default());
            let created_at_us = message.created_at.timestamp_micros();
            marks.push(Mark { id: message.id, created_at_us, end: position(&json) });
        }
        let (older, digest) = (lines.len() > size, answer::digest(&json));
        json.extend(ending(older));
        (chat, Self { company, older, digest, json: json.into(), first, marks })
    }

    /// What answers a request, if the window covers it. Windows have up to `size` messages.
    pub(super) fn slice(&self, page: &Page, size: usize) -> Option<Slice> {
        let from = match page.before {
            None => 0,
            Some(before) => self.marks.iter().position(|mark| mark.id == before)? + 1,
        };
        let earliest = page.from_date.map(|date| date.timestamp_micros());
        let wanted = earliest.map_or(self.marks.len(), |earliest| {
            self.marks.partition_point(|mark| mark.created_at_us >= earliest)
        });
        let wanted = wanted.max(from);
        let to = wanted.min(from + page.limit);
        // The window ends where there may be more of what was asked for.
        let cut_off = self.older && to == self.marks.len();
        // Another message would be too much for any page from here.
        let full = from == 0 && earliest.is_none() && self.marks.len() < size;
        match cut_off && !full && (to - from < page.limit || earliest.is_some()) {
            true => None,
            false => Some(Slice { from, to, more: to < wanted || cut_off }),
        }
    }

    /// Bytes of all of it, as it is sent.
    pub(super) fn bytes(&self) -> usize {
        self.json.len()
    }

    /// The body of a slice, and its tag: which changes with anything in the window.
    pub(super) fn rendered(&self, slice: Slice) -> Rendered {
        let Slice { from, to, more } = slice;
        let tag = answer::tag(&self.digest, format_args!("-{from}-{to}-{}", u8::from(more)));
        Rendered { body: slice.body(self), tag }
    }

    fn end(&self, messages: usize) -> usize {
        let end =
            messages.checked_sub(1).and_then(|last| self.marks.get(last)).map_or(self.first, |mark| mark.end);
        usize::try_from(end).unwrap_or_default().min(self.json.len())
    }
}

impl Slice {
    /// All of a window as it lies there, once for all who take it. A part is copied, for it would keep all.
    fn body(self, window: &Window) -> Bytes {
        if self == (Self { from: 0, to: window.marks.len(), more: window.older }) {
            return window.json.clone();
        }
        let head = window.end(0);
        // After the first message there is a comma in between.
        let begin = if self.from == 0 { head } else { (window.end(self.from) + 1).min(window.json.len()) };
        let end = if self.from == self.to { begin } else { window.end(self.to).max(begin) };
        [&window.json[..head], &window.json[begin..end], ending(self.more)].concat().into()
    }
}

/// How a page ends, behind its last message.
const fn ending(more: bool) -> &'static [u8] {
    if more { b"],\"more\":true}" } else { b"],\"more\":false}" }
}

impl Line {
    fn message(&self) -> Option<Message> {
        Some(Message {
            id: self.id?,
            sender: self.sender.clone()?,
            body: self.body.clone()?,
            created_at: self.created_at?,
        })
    }
}

fn position(json: &[u8]) -> u32 {
    u32::try_from(json.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::MAX_BYTES;
    use super::*;

    fn line(id: i64, created_at_us: i64) -> Line {
        Line {
            chat: Uuid::nil(),
            company_id: 7,
            id: Some(id),
            sender: Some("user".to_owned()),
            body: Some(format!("\"{id}\"\n,],")),
            created_at: DateTime::from_timestamp_micros(created_at_us),
        }
    }

    /// What the body of a slice says.
    fn shown(window: &Window, slice: Slice) -> (Vec<i64>, bool) {
        let bytes = &window.rendered(slice).body;
        let page: Value = serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
        let ids = page["messages"].as_array().unwrap().iter().map(|message| message["id"].as_i64().unwrap());
        (ids.collect(), page["more"].as_bool().unwrap())
    }

    #[test]
    fn a_chat_without_messages_is_an_empty_page() {
        let none = Line { id: None, sender: None, body: None, created_at: None, ..line(0, 0) };
        let (_, window) = Window::of(&[none], 10);
        let page = Page { limit: 5, from_date: None, before: None };
        assert_eq!(shown(&window, window.slice(&page, 10).unwrap()), (vec![], false));
    }

    #[test]
    fn a_page_ends_before_its_text_is_too_much_and_a_window_is_such_a_page() {
        let large = |id| Line { body: Some("x".repeat(MAX_BYTES / 10)), ..line(id, id) };
        let lines: Vec<Line> = (0..12).rev().map(large).collect();
        let (_, window) = Window::of(&lines, 200);
        let page = |limit, before| Page { limit, from_date: None, before };
        let newest: Vec<i64> = (2..12).rev().collect();
        assert_eq!(shown(&window, window.slice(&page(100, None), 200).unwrap()), (newest, true));
        assert_eq!(shown(&window, window.slice(&page(3, Some(9)), 200).unwrap()), (vec![8, 7, 6], true));
        assert_eq!(window.slice(&page(100, Some(9)), 200), None, "there may be more of it");
        let (_, all) = Window::of(&lines[..10], 200);
        assert!(!shown(&all, all.slice(&page(100, None), 200).unwrap()).1, "nothing was left out");
        // One that is too large alone is a page all the same.
        let huge = |id| Line { body: Some("x".repeat(2 * MAX_BYTES)), ..line(id, id) };
        let (_, window) = Window::of(&[huge(2), huge(1)], 200);
        assert_eq!(shown(&window, window.slice(&page(100, None), 200).unwrap()), (vec![2], true));
    }

    #[test]
    fn a_page_that_is_all_of_a_window_is_not_copied_and_a_part_keeps_nothing_of_it() {
        let lines: Vec<Line> = (0..4).rev().map(|id| line(id, id)).collect();
        let (_, window) = Window::of(&lines, 200);
        let within = |bytes: &Bytes| window.json.as_ptr_range().contains(&bytes.as_ptr());
        for limit in 1..=4 {
            let page = Page { limit, from_date: None, before: None };
            let slice = window.slice(&page, 200).unwrap();
            assert_eq!(shown(&window, slice).0.len(), limit);
            assert_eq!(within(&window.rendered(slice).body), limit == 4, "{limit} of 4");
        }
    }

    proptest! {
        #[test]
        fn what_a_window_covers_is_what_all_messages_would_say(
            mut times in prop::collection::vec(0_i64..20, 0..40),
            size in 1_usize..30,
            limit in 1_usize..40,
            from_date in prop::option::of(0_i64..21),
            before in prop::option::of(0_usize..40),
        ) {
            times.sort_unstable_by(|a, b| b.cmp(a));
            // The newest first; among those of one time, the one with the greatest number.
            let all: Vec<(i64, i64)> = (1..).zip(times.iter().rev().copied()).collect::<Vec<_>>().into_iter().rev().collect();
            let lines: Vec<Line> = all.iter().take(size + 1).map(|(id, time)| line(*id, *time)).collect();
            prop_assume!(!lines.is_empty());
            let (_, window) = Window::of(&lines, size);
            let before = before.and_then(|at| all.get(at)).map(|(id, _)| *id);
            let page = Page { limit, from_date: from_date.and_then(DateTime::from_timestamp_micros), before };
            let matching: Vec<i64> = all
                .iter()
                .filter(|(id, time)| before.is_none_or(|before| *id < before) && from_date.is_none_or(|from| *time >= from))
                .map(|(id, _)| *id)
                .collect();
            match window.slice(&page, size) {
                Some(slice) => {
                    let wanted = (matching.iter().copied().take(limit).collect(), matching.len() > limit);
                    prop_assert_eq!(shown(&window, slice), wanted);
                }
                // Only what may lie beyond its end is asked of Postgres.
                None => {
                    let last = before.map_or(0, |before| all.iter().position(|(id, _)| *id == before).unwrap_or(0) + 1);
                    prop_assert!(all.len() > size && last + limit >= size, "it was there");
                }
            }
        }

        #[test]
        fn a_window_is_the_same_after_it_was_in_l2(times in prop::collection::vec(0_i64..9, 1..9)) {
            let lines: Vec<Line> = (1..).zip(times).map(|(id, time)| line(id, time)).collect();
            let (_, window) = Window::of(&lines, 5);
            let bytes = bincode::serde::encode_to_vec(&window, bincode::config::standard()).unwrap();
            let (read, _): (Window, usize) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
            prop_assert_eq!(format!("{window:?}"), format!("{read:?}"));
        }
    }
}
