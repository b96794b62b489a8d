//! Which conversation a callback belongs to, and which connection sends it.
//!
//! Callbacks are numbered from 0. Both depend only on the number. So a run can be repeated, and there is no state per
//! conversation, of which there may be millions.

/// Assigns the numbered callbacks to commands and conversations in turn.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// The number of commands; all of them are sent for one conversation, then for the next.
    pub commands: u64,
    /// Conversations of each command.
    pub conversations: u64,
}

/// What a numbered callback is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The command, counted from 0.
    pub command: u64,
    /// The conversation, counted from 0.
    pub conversation: u64,
    /// How many callbacks this conversation has had before.
    pub turn: u64,
}

impl Order {
    /// Finds the place of callback `number`.
    pub const fn place(self, number: u64) -> Place {
        let slot = number / self.commands;
        Place {
            command: number % self.commands,
            conversation: slot % self.conversations,
            turn: slot / self.conversations,
        }
    }

    /// Lists the numbers below `count` that connection `index` of `connections` sends, ascending.
    ///
    /// One connection sends all callbacks of a conversation and waits for each answer, so they never overtake each
    /// other.
    pub fn share(
        self,
        index: u64,
        connections: u64,
        count: u64,
    ) -> impl Iterator<Item = u64> + Send {
        let mut next = Place {
            command: 0,
            conversation: index,
            turn: 0,
        };
        std::iter::from_fn(move || {
            let slot = next.turn.checked_mul(self.conversations)?;
            let number = slot
                .checked_add(next.conversation)?
                .checked_mul(self.commands)?
                .checked_add(next.command)?;
            next.command += 1;
            if next.command == self.commands {
                next.command = 0;
                next.conversation += connections;
            }
            if next.conversation >= self.conversations {
                next.conversation = index;
                next.turn += 1;
            }
            (number < count).then_some(number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_take_turns_and_each_sees_every_command() {
        let order = Order {
            commands: 2,
            conversations: 2,
        };
        let places: Vec<_> = (0..6)
            .map(|number| {
                let place = order.place(number);
                (place.command, place.conversation, place.turn)
            })
            .collect();
        assert_eq!(
            places,
            [
                (0, 0, 0),
                (1, 0, 0),
                (0, 1, 0),
                (1, 1, 0),
                (0, 0, 1),
                (1, 0, 1)
            ]
        );
    }

    #[test]
    fn shares_cover_every_number_once_and_ascend() {
        for (commands, conversations, connections, count) in
            [(1, 1, 1, 5), (1, 10, 4, 103), (3, 7, 7, 100), (3, 5, 2, 2)]
        {
            let order = Order {
                commands,
                conversations,
            };
            let mut all = Vec::new();
            for of in 0..connections {
                let share: Vec<_> = order.share(of, connections, count).collect();
                assert!(share.is_sorted(), "{share:?}");
                all.extend(share);
            }
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_conversation_stays_on_its_connection() {
        let order = Order {
            commands: 3,
            conversations: 8,
        };
        for of in 0..3 {
            for number in order.share(of, 3, 500) {
                assert_eq!(
                    order.place(number).conversation % 3,
                    of,
                    "callback {number}"
                );
            }
        }
    }
}
