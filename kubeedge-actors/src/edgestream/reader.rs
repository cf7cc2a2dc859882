//! Sends a log file, and goes on while it grows.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use kubeedge_proto::v1::{ContainerLog, LocateContainerLog};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, SeekFrom},
    time::Instant,
};

use super::{
    log_lines::{LogLines, tail_start},
    options::LogRequest,
    refuse, respond,
};
use crate::{
    link::streams::{Stream, StreamError},
    system::Port,
};

/// How long Edged may take; it asks the container runtime.
const LOCATE_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two looks at a log that is followed.
const POLL: Duration = Duration::from_millis(250);
/// How often it is asked whether the container of such a log still runs.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Bytes read at a time.
const READ: usize = 32 * 1024;

pub(super) async fn send_log(
    request: LogRequest,
    locate: Port<LocateContainerLog>,
    stream: &mut Stream,
) -> Result<(), StreamError> {
    let wanted = LocateContainerLog {
        pod: Some(request.pod.clone()),
        container: request.container.clone(),
        previous: request.options.previous,
        instance: String::new(),
    };
    let log = match locate.ask(wanted.clone(), LOCATE_WITHIN).await {
        Ok(log) if log.code == 200 => log,
        Ok(log) => return refuse(stream, log.code, log.message).await,
        Err(error) => return refuse(stream, 503, format!("Edged: {error}")).await,
    };
    let file = match open(&log.path, request.options.tail).await {
        Ok(file) => file,
        Err(error) => return refuse(stream, 500, format!("the log {}: {error}", log.path)).await,
    };
    respond(stream, 200);
    let reading = Reading { file, lines: LogLines::new(&request.options), path: log.path.clone() };
    let wanted = LocateContainerLog { instance: log.instance.clone(), ..wanted };
    let sent = reading.send(&log, request.options.follow, wanted, locate, stream).await?;
    if let Err(error) = sent {
        // The head has gone: the words come where the log would, as a kubelet does it.
        stream.write(format!("\nthe log {}: {error}\n", log.path).into()).await?;
    }
    Ok(())
}

/// Opens a log where the last lines begin.
async fn open(path: &str, tail: Option<u64>) -> std::io::Result<File> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(&path)?;
        let start = match tail {
            Some(lines) => {
                let length = file.metadata()?.len();
                tail_start(&mut file, length, lines)?
            }
            None => 0,
        };
        Ok::<_, std::io::Error>((file, start))
    });
    let (file, start) = opened.await.map_err(std::io::Error::other)??;
    let mut file = File::from_std(file);
    file.seek(SeekFrom::Start(start)).await?;
    Ok(file)
}

struct Reading {
    file: File,
    lines: LogLines,
    path: String,
}

impl Reading {
    /// To the end, or while the container runs. The inner error is the file's, the outer one the stream's.
    async fn send(
        mut self,
        log: &ContainerLog,
        follow: bool,
        wanted: LocateContainerLog,
        locate: Port<LocateContainerLog>,
        stream: &mut Stream,
    ) -> Result<std::io::Result<()>, StreamError> {
        let mut running = follow && log.running;
        let mut asked = Instant::now();
        loop {
            match self.send_rest(stream).await? {
                Ok(()) => {}
                Err(error) => return Ok(Err(error)),
            }
            if self.lines.is_full() {
                break;
            }
            match self.rotated().await {
                Ok(true) => continue,
                Ok(false) if !running => break,
                Ok(false) => {}
                Err(error) => return Ok(Err(error)),
            }
            tokio::select! {
                error = stream.given_up() => return Err(error),
                () = tokio::time::sleep(POLL) => {}
            }
            if asked.elapsed() >= ASK_EVERY {
                asked = Instant::now();
                // What it wrote before it ended is still read. No answer is no news.
                if let Ok(now) = locate.ask(wanted.clone(), LOCATE_WITHIN).await {
                    running = match now.code {
                        200 => now.running,
                        404 => false,
                        _ => true,
                    };
                }
            }
        }
        if self.lines.malformed() > 0 {
            tracing::debug!(path = self.path, lines = self.lines.malformed(), "lines were not the runtime's: left out");
        }
        Ok(Ok(()))
    }

    async fn send_rest(&mut self, stream: &mut Stream) -> Result<std::io::Result<()>, StreamError> {
        let mut raw = vec![0; READ];
        while !self.lines.is_full() {
            let read = match self.file.read(&mut raw).await {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            let text = self.lines.push(&raw[..read]);
            if !text.is_empty() {
                stream.write(text).await?;
            }
        }
        Ok(Ok(()))
    }

    /// Whether another file has taken this one's place, which is read then, or it was cut, which is read anew.
    async fn rotated(&mut self) -> std::io::Result<bool> {
        let ours = self.file.metadata().await?;
        let position = self.file.stream_position().await?;
        if ours.len() < position {
            self.file.seek(SeekFrom::Start(0)).await?;
            return Ok(true);
        }
        match tokio::fs::metadata(Path::new(&self.path)).await {
            Ok(now) if (now.dev(), now.ino()) != (ours.dev(), ours.ino()) && ours.len() == position => {
                self.file = File::open(&self.path).await?;
                Ok(true)
            }
            Ok(_) => Ok(false),
            // Between a rotation's two steps, or removed with its container.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
