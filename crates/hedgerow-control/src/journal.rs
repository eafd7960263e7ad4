//! The one writer of what needs no revision: events and counters, many to a transaction.

use std::collections::BTreeMap;

use hedgerow_model::event::Event;
use hedgerow_model::id::DeviceId;
use tokio::sync::{mpsc, oneshot};

use crate::store::{Store, devices};

/// Notes that wait for the writer; further ones are dropped and counted.
const NOTES_MAX: usize = 8192;
/// Notes in one transaction.
const BATCH_MAX: usize = 1024;

/// One thing to write down.
#[derive(Debug)]
pub(crate) enum Note {
    /// What the controller saw.
    Seen(Event),
    /// What a device reported; the answer says whether it is stored.
    Reported(DeviceId, Vec<Event>, oneshot::Sender<bool>),
    /// The newest start of a device's agent.
    Generation(DeviceId, u64),
}

/// Opens the way to the writer.
pub(crate) fn channel() -> (mpsc::Sender<Note>, mpsc::Receiver<Note>) {
    mpsc::channel(NOTES_MAX)
}

/// Writes until every sender is gone.
pub(crate) async fn run(store: Store, mut notes: mpsc::Receiver<Note>) {
    let mut batch = Vec::new();
    while notes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        write(&store, std::mem::take(&mut batch)).await;
    }
}

async fn write(store: &Store, batch: Vec<Note>) {
    let mut events = Vec::new();
    let mut generations = BTreeMap::new();
    let mut answers = Vec::new();
    for note in batch {
        match note {
            Note::Seen(event) => events.push((None, event)),
            Note::Reported(device, reported, answer) => {
                events.extend(reported.into_iter().map(|e| (Some(device), e)));
                answers.push(answer);
            }
            Note::Generation(device, generation) => {
                generations.insert(device, generation);
            }
        }
    }
    let mut stored = true;
    if !events.is_empty()
        && let Err(error) = store.add_events(&events).await
    {
        tracing::error!(%error, count = events.len(), "events could not be stored");
        stored = false;
    }
    if !generations.is_empty()
        && let Err(error) = write_generations(store, generations).await
    {
        tracing::error!(%error, "generations could not be stored");
    }
    for answer in answers {
        // The session may have ended meanwhile; the device will offer the events again.
        let _nobody_listens: Result<(), bool> = answer.send(stored);
    }
}

async fn write_generations(
    store: &Store,
    generations: BTreeMap<DeviceId, u64>,
) -> Result<(), crate::store::StoreError> {
    let mut tx = store.note().await?;
    for (device, generation) in generations {
        devices::set_generation(&mut tx, device, generation).await?;
    }
    tx.commit().await
}
