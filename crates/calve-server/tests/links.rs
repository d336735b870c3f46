//! Links against an agent that a test plays, well- and misbehaved.

mod fake_agent;

use std::collections::BTreeMap;
use std::sync::Arc;

use calve_server::agents::{LinkError, STREAMS_MAX, StreamEvent};
use calve_server::logs::Query;
use calve_wire::agent::{FromAgent, Phase, Status, Target, ToAgent};
use calve_wire::frame::{CHUNK_MAX_BYTES, Channel, Frame, Incoming, STREAM_WINDOW_BYTES};
use calve_wire::machine::Exit;
use fake_agent::*;
use futures_util::StreamExt;

fn command() -> Target {
    Target::Command { argv: vec!["true".into()], env: BTreeMap::new(), cwd: None, stdin: true, tty: None }
}

fn exit() -> Exit {
    Exit { code: Some(3), signal: None, cause: calve_core::ExitCause::Normal }
}

#[tokio::test]
async fn a_link_greets_reports_and_keeps_the_log() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    assert!(!world.agents.reports()[&id].linked);
    assert_eq!(world.agents.send(id, ToAgent::PowerOff), Err(LinkError::NotLinked));
    let (mut conversation, kept) = agent.accept_linked(0).await;
    assert_eq!(kept, 0);
    world.until_linked(id).await;
    conversation.log(1..=3).await;
    conversation.say(FromAgent::Status { status: status(Phase::Ended, 3) }).await;
    world.until("the end", || world.agents.reports()[&id].status == Some(status(Phase::Ended, 3))).await;
    assert_eq!(world.logs.last_seq(id).unwrap(), 3, "the end is heard behind the output");
    conversation.kept(3).await;
    world.agents.send(id, ToAgent::Stop { grace_ms: 5 }).unwrap();
    assert_eq!(conversation.message().await, ToAgent::Stop { grace_ms: 5 });
    world.agents.unlink(id);
    conversation.hung_up().await;
    assert_eq!(world.agents.send(id, ToAgent::PowerOff), Err(LinkError::Unknown));
    assert!(world.agents.reports().is_empty());
}

#[tokio::test]
async fn last_words_in_a_run_directory_are_heard_once_and_kept() {
    let world = World::new();
    let id = machine(1);
    let file = world.dir.path().join("last-words");
    let leave = |said: Status| {
        let mut bytes = Vec::new();
        (1..=2).for_each(|seq| Frame::Log(entry(seq, b"x")).encode(&mut bytes));
        let said = serde_json::to_vec(&FromAgent::Status { status: said }).unwrap();
        Frame::Control(said).encode(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
    };
    world.agents.hear_last_words(id, &file);
    // Of what never began, nothing is taken: it may be made again.
    leave(Status { starts: 0, ..status(Phase::Waiting, 2) });
    world.agents.hear_last_words(id, &file);
    assert_eq!((world.agents.reports().len(), world.logs.last_seq(id).unwrap()), (0, 0));
    let last = Status { last_exit: Some(exit()), ..status(Phase::Ended, 2) };
    leave(last.clone());
    for _ in 0..2 {
        world.agents.hear_last_words(id, &file);
        let report = world.agents.reports().remove(&id).unwrap();
        assert_eq!((report.status, report.linked, report.log_complete), (Some(last.clone()), false, true));
        assert_eq!(world.logs.last_seq(id).unwrap(), 2);
    }
    world.agents.forget_last_words(id);
    assert!(world.agents.reports().is_empty());
}

#[tokio::test]
async fn stale_bytes_before_the_preamble_are_dropped() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let mut conversation = agent.accept().await;
    conversation.hello().await;
    let stale = encoded(&Frame::Data { stream: 9, channel: Channel::Stdout, bytes: vec![1; 5000] });
    conversation.raw(&stale[..3000]).await;
    conversation.raw(&token().preamble()).await;
    conversation.welcome(0).await;
    world.until_linked(id).await;
}

#[tokio::test]
async fn a_misbehaving_agent_is_left_and_tried_again() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let preamble = token().preamble();
    // Garbage, a log before the welcome, unknown messages, other versions: each ends the connection.
    let status = status(Phase::Running, 0);
    let version = FromAgent::Welcome { version: 2, agent: "newer".into(), status };
    let bad: [Vec<u8>; 5] = [
        [255; 100].to_vec(),
        encoded(&Frame::Log(entry(1, b"x"))),
        encoded(&Frame::Control(b"{\"type\":\"sing\"}".to_vec())),
        encoded(&Frame::Control(serde_json::to_vec(&version).unwrap())),
        encoded(&Frame::Data { stream: 1, channel: Channel::Stdout, bytes: vec![1] }),
    ];
    for bytes in bad {
        let mut conversation = agent.accept().await;
        conversation.hello().await;
        conversation.raw(&preamble).await;
        conversation.raw(&bytes).await;
        conversation.hung_up().await;
    }
    let (_conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_another_token_is_not_heard() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let mut conversation = agent.accept().await;
    conversation.hello().await;
    let other: calve_wire::frame::Token = "f".repeat(32).parse().unwrap();
    conversation.raw(&other.preamble()).await;
    conversation.welcome(0).await;
    conversation.log(1..=1).await;
    conversation.hung_up().await;
    assert!(!world.agents.reports()[&id].linked);
    assert_eq!(world.logs.last_seq(id).unwrap(), 0);
}

#[tokio::test]
async fn doubles_are_dropped_and_gaps_ask_again() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(9).await;
    conversation.log(1..=4).await;
    conversation.log(2..=5).await;
    conversation.kept(5).await;
    conversation.log(7..=7).await;
    conversation.hung_up().await;
    let (mut conversation, kept) = agent.accept_linked(9).await;
    assert_eq!(kept, 5);
    conversation.log(4..=9).await;
    conversation.kept(9).await;
    let seqs: Vec<_> = world.log(id).await.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_connection_cut_within_a_frame_goes_on_behind_the_last_kept_entry() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(2).await;
    conversation.log(1..=1).await;
    conversation.raw(&encoded(&Frame::Log(entry(2, &[7; 900])))[..500]).await;
    conversation.kept(1).await;
    drop(conversation);
    let (mut conversation, kept) = agent.accept_linked(2).await;
    assert_eq!(kept, 1);
    conversation.frame(Frame::Log(entry(2, &[7; 900]))).await;
    conversation.kept(2).await;
    assert_eq!(world.log(id).await.len(), 2);
}

#[tokio::test]
async fn an_agent_that_begins_anew_on_the_same_connection_is_greeted_again() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let mut stream = world.agents.open(id, command()).unwrap();
    conversation.raw(&token().preamble()).await;
    assert!(matches!(stream.recv().await, Some(StreamEvent::Failed { .. })));
    assert_eq!(stream.recv().await, None);
    conversation.hung_up().await;
    let (_conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
}

#[tokio::test]
async fn answers_to_several_hellos_settle() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    // As a guest does that opens its port late: it answers what former connections left there, too.
    let mut conversation = agent.accept().await;
    conversation.hello().await;
    for _ in 0..4 {
        conversation.raw(&token().preamble()).await;
        conversation.welcome(0).await;
    }
    conversation.hung_up().await;
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    world.agents.send(id, ToAgent::PowerOff).unwrap();
    assert_eq!(conversation.message().await, ToAgent::PowerOff);
}

#[tokio::test]
async fn a_log_that_was_lost_here_goes_on_where_the_agent_still_has_it() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(5).await;
    conversation.log(1..=2).await;
    conversation.kept(2).await;
    drop(conversation);
    let (mut conversation, kept) = agent.accept_linked(9).await;
    assert_eq!(kept, 2);
    conversation.log(6..=9).await;
    conversation.kept(9).await;
    let seqs: Vec<_> = world.log(id).await.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, [1, 2, 6, 7, 8, 9]);
}

#[tokio::test]
async fn long_socket_paths_are_reached() {
    let world = World::new();
    let dir = world.dir.path().join("d".repeat(120));
    std::fs::create_dir(&dir).unwrap();
    // Bound under a short name and moved: the address holds no more.
    let agent = FakeAgent::listen(&world.dir.path().join("short"));
    std::fs::rename(&agent.path, dir.join("agent.sock")).unwrap();
    let id = machine(1);
    world.agents.link(id, dir.join("agent.sock"), TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    let (_conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
}

#[tokio::test]
async fn a_stream_carries_both_ways_within_its_windows() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let stream = world.agents.open(id, command()).unwrap();
    assert_eq!(conversation.message().await, ToAgent::Open { stream: 1, target: command() });
    conversation.say(FromAgent::Opened { stream: 1 }).await;
    let (sender, mut receiver) = stream.split();
    // To the agent: a window, and not a byte more before it grants.
    let total = 3 * STREAM_WINDOW_BYTES;
    let sending = tokio::spawn(async move {
        sender.send(&vec![b's'; total]).await.unwrap();
        sender.close_stdin().await.unwrap();
        sender
    });
    let mut came = 0;
    loop {
        let Some(Incoming::Frame(Frame::Data { stream: 1, channel: Channel::Stdin, bytes })) =
            conversation.next().await
        else {
            panic!("data was expected")
        };
        assert!(bytes.len() <= CHUNK_MAX_BYTES);
        came += bytes.len();
        assert!(came % STREAM_WINDOW_BYTES == 0 || !bytes.is_empty());
        if bytes.is_empty() {
            break;
        }
        if came % STREAM_WINDOW_BYTES == 0 {
            let bytes = STREAM_WINDOW_BYTES as u32;
            conversation.say(FromAgent::Window { stream: 1, bytes }).await;
        }
    }
    assert_eq!(came, total);
    let sender = sending.await.unwrap();
    // From the agent: taking grants.
    for _ in 0..4 {
        conversation.data(1, &[b'r'; CHUNK_MAX_BYTES]).await;
    }
    let mut taken = 0;
    while taken < STREAM_WINDOW_BYTES {
        match receiver.recv().await {
            Some(StreamEvent::Data(Channel::Stdout, bytes)) => taken += bytes.len(),
            other => panic!("data was expected, not {other:?}"),
        }
    }
    let mut granted = 0;
    while granted < STREAM_WINDOW_BYTES as u32 {
        match conversation.message().await {
            ToAgent::Window { stream: 1, bytes } => granted += bytes,
            other => panic!("a grant was expected, not {other:?}"),
        }
    }
    sender.signal(2).unwrap();
    assert_eq!(conversation.message().await, ToAgent::StreamSignal { stream: 1, signal: 2 });
    conversation.data(1, b"last").await;
    conversation.say(FromAgent::StreamEnded { stream: 1, exit: Some(exit()) }).await;
    assert_eq!(receiver.recv().await, Some(StreamEvent::Data(Channel::Stdout, b"last".to_vec().into())));
    assert_eq!(receiver.recv().await, Some(StreamEvent::Ended(Some(exit()))));
    assert_eq!(receiver.recv().await, None);
    assert_eq!(sender.send(b"late").await, Err(LinkError::StreamClosed));
    drop((sender, receiver));
    world.agents.send(id, ToAgent::PowerOff).unwrap();
    assert_eq!(conversation.message().await, ToAgent::PowerOff, "an ended stream is not reset");
}

#[tokio::test]
async fn a_dropped_stream_is_reset_and_a_broken_link_fails_every_stream() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    drop(world.agents.open(id, command()).unwrap());
    assert_eq!(conversation.message().await, ToAgent::Open { stream: 1, target: command() });
    assert_eq!(conversation.message().await, ToAgent::Reset { stream: 1 });
    // What was under way for it is nobody's.
    conversation.data(1, b"late").await;
    let mut streams: Vec<_> = (0..STREAMS_MAX).map(|_| world.agents.open(id, command()).unwrap()).collect();
    assert_eq!(world.agents.open(id, command()).unwrap_err(), LinkError::TooManyStreams);
    drop(conversation);
    for stream in &mut streams {
        assert!(
            matches!(stream.recv().await, Some(StreamEvent::Failed { message: reason, .. }) if reason.contains("broke"))
        );
        assert_eq!(stream.send(b"x").await, Err(LinkError::StreamClosed));
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(1).await;
    world.until_linked(id).await;
    let _dead = world.agents.open(id, command()).unwrap();
    let mut alive = world.agents.open(id, command()).unwrap();
    for _ in 0..STREAM_WINDOW_BYTES / CHUNK_MAX_BYTES {
        conversation.data(1, &[0; CHUNK_MAX_BYTES]).await;
    }
    conversation.log(1..=1).await;
    conversation.say(FromAgent::Status { status: status(Phase::Stopping, 1) }).await;
    conversation.data(2, b"hello").await;
    assert_eq!(alive.recv().await, Some(StreamEvent::Data(Channel::Stdout, b"hello".to_vec().into())));
    assert_eq!(world.agents.reports()[&id].status, Some(status(Phase::Stopping, 1)));
    assert_eq!(world.logs.last_seq(id).unwrap(), 1);
    // An agent that sends more than it was granted is broken.
    conversation.data(1, b"one too many").await;
    conversation.hung_up().await;
}

#[tokio::test]
async fn standard_input_has_one_writer_and_outlives_it() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let stdin = world.agents.stdin(id).unwrap();
    assert_eq!(world.agents.stdin(id).unwrap_err(), LinkError::StdinTaken);
    stdin.send(b"one").await.unwrap();
    drop(stdin);
    let stdin = world.agents.stdin(id).unwrap();
    stdin.send(b"two").await.unwrap();
    stdin.close().await.unwrap();
    for expected in [b"one".as_slice(), b"two", b""] {
        let frame = Frame::Data { stream: 0, channel: Channel::Stdin, bytes: expected.to_vec() };
        assert_eq!(conversation.next().await, Some(Incoming::Frame(frame)));
    }
    // The program has closed its input: the writer learns it also while it waits for room.
    let waiting = tokio::spawn(async move { stdin.send(&[0; 2 * STREAM_WINDOW_BYTES]).await });
    let closed = FromAgent::StreamFailed { stream: 0, message: "closed".into(), exit: None };
    conversation.say(closed).await;
    assert_eq!(waiting.await.unwrap(), Err(LinkError::StreamClosed));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_not_acknowledged_and_asked_for_again() {
    let world = World::new();
    let id = machine(1);
    // A file where the directory should be: nothing can be written.
    let obstacle = world.dir.path().join("logs");
    std::fs::create_dir(&obstacle).unwrap();
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(3).await;
    world.until_linked(id).await;
    std::fs::write(obstacle.join(id.to_string()), "").unwrap();
    conversation.log(1..=3).await;
    conversation.say(FromAgent::Status { status: status(Phase::Ended, 3) }).await;
    let noted = || {
        let status = world.agents.reports()[&id].status.clone().unwrap();
        status.notes.iter().any(|note| note.contains("cannot be used"))
            && status.phase == Phase::Ended
            && !world.agents.reports()[&id].log_complete
    };
    world.until("the failure to be noted", noted).await;
    // Streams and messages go on meanwhile.
    let mut stream = world.agents.open(id, command()).unwrap();
    conversation.data(1, b"alive").await;
    assert!(matches!(stream.recv().await, Some(StreamEvent::Data(..))));
    conversation.log(4..=5).await;
    std::fs::remove_file(obstacle.join(id.to_string())).unwrap();
    conversation.hung_up().await;
    let (mut conversation, kept) = agent.accept_linked(5).await;
    assert!((1..=3).contains(&kept), "{kept}");
    conversation.log(kept + 1..=5).await;
    conversation.kept(5).await;
    assert_eq!(world.log(id).await, (1..=5).map(|seq| entry(seq, b"line\n")).collect::<Vec<_>>());
    assert_eq!(world.agents.reports()[&id].status.as_ref().unwrap().notes, Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_does_not_read_cannot_fill_the_server() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (_conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let message = || ToAgent::Open { stream: 1, target: Target::Read { path: "x".repeat(1000) } };
    let mut sent = 0;
    while world.agents.send(id, message()).is_ok() {
        sent += 1;
        assert!(sent < 10_000);
        tokio::task::yield_now().await;
    }
    assert_eq!(world.agents.send(id, message()), Err(LinkError::Busy));
}

#[tokio::test]
async fn logs_are_followed_over_reconnections() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let mut follower = world.logs.follow(id, Query::default()).await.unwrap();
    let mut made = 0;
    for _ in 0..20 {
        let (mut conversation, kept) = agent.accept_linked(made + 10).await;
        conversation.log(kept + 1..=made + 10).await;
        made += 10;
    }
    for seq in 1..=190 {
        assert_eq!(follower.next().await.unwrap().seq, seq);
    }
}

#[tokio::test]
async fn hundreds_of_links_hold() {
    // 200 machines take 600 descriptors of this process, which may have no more than 1,024.
    const MACHINES: u64 = 200;
    let world = World::new();
    let agents: Vec<_> = (1..=MACHINES).map(|n| (machine(n), world.link(machine(n)))).collect();
    let mut conversations = Vec::new();
    for (_, agent) in &agents {
        let (mut conversation, _) = agent.accept_linked(1).await;
        conversation.log(1..=1).await;
        conversations.push(conversation);
    }
    for conversation in &mut conversations {
        conversation.kept(1).await;
    }
    assert!(world.agents.reports().values().all(|report| report.linked));
    drop((conversations, agents));
    world.until("every link to break", || world.agents.reports().values().all(|report| !report.linked)).await;
}
