//! One device on its wire: connected again and again, read in each property's cycle, written when something is desired.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use kubeedge_actors::mapper::{DeviceId, Reading, Reporter, push::Pusher};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_modbus::{
    ExceptionCode,
    client::{Context, tcp},
    prelude::{Client as _, Reader, Writer},
    slave::Slave,
};

use crate::{
    manifest::{Plan, Point, Table},
    registers::{Kind, boolean},
};

/// For a connection, and for each request.
const WITHIN: Duration = Duration::from_secs(3);
/// Pauses between connections, doubled from the first to the last, each with jitter.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// A device and whom to tell of it.
pub(crate) struct Unit {
    pub(crate) id: DeviceId,
    pub(crate) plan: Plan,
    pub(crate) reporter: Reporter,
    pub(crate) pusher: Rc<RefCell<Pusher>>,
}

/// What a request came to: an answer, the device's refusal of it, or the end of the connection.
type Answered<T> = Result<Result<T, String>, String>;

/// A property's course.
struct Course {
    point: Point,
    due: Instant,
    /// The desired value that the device has taken.
    taken: Option<String>,
    /// What edgecore was told: the value, and the desired value that was taken.
    told: Option<(String, Option<String>)>,
    /// What is wrong, as long as it is the same.
    trouble: Option<String>,
}

impl Unit {
    /// Until dropped.
    pub(crate) async fn run(self) {
        let mut pause = AGAIN.0;
        let mut state = None;
        let mut told = BTreeMap::new();
        loop {
            let why = match self.connect().await {
                Ok(mut context) => {
                    pause = AGAIN.0;
                    self.tell_state(&mut state, "ok").await;
                    let why = self.serve(&mut context, &mut state, &mut told).await;
                    // The connection is given up in any case.
                    let _ = timeout(WITHIN, context.disconnect()).await;
                    why
                }
                Err(why) => why,
            };
            tracing::warn!(device = %self.id, again_in = ?pause, "{}:{}: {why}", self.plan.host, self.plan.port);
            self.tell_state(&mut state, "offline").await;
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn connect(&self) -> Result<Context, String> {
        let Plan { host, port, unit, .. } = &self.plan;
        match timeout(WITHIN, TcpStream::connect((host.as_str(), *port))).await {
            Ok(Ok(stream)) => Ok(tcp::attach_slave(stream, Slave(*unit))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {WITHIN:?}")),
        }
    }

    async fn tell_state(&self, told: &mut Option<&'static str>, state: &'static str) {
        if *told == Some(state) {
            return;
        }
        match self.reporter.report_state(&self.id, state).await {
            Ok(()) => *told = Some(state),
            Err(error) => tracing::warn!(device = %self.id, "its state {state} is told later: {error}"),
        }
    }

    /// Reads and writes until the connection ends. Why it did comes back.
    async fn serve(
        &self,
        context: &mut Context,
        state: &mut Option<&'static str>,
        told: &mut BTreeMap<String, (String, Option<String>)>,
    ) -> String {
        let now = Instant::now();
        // A device that was away may have forgotten what is desired: it is written anew with each connection.
        let mut courses: Vec<Course> =
            self.plan.points.iter().cloned().map(|point| Course::new(point, now, told)).collect();
        loop {
            let Some(due) = courses.iter().map(|course| course.due).min() else {
                return std::future::pending().await;
            };
            sleep_until(due).await;
            let now = Instant::now();
            let mut news = Vec::new();
            for course in courses.iter_mut().filter(|course| course.due <= now) {
                course.due = (course.due + course.point.cycle).max(now);
                match course.turn(context).await {
                    Ok(Ok(value)) => {
                        self.pusher.borrow().reading(&self.id, &course.point.name, &value);
                        let now = (value, course.taken.clone());
                        if course.told.as_ref() != Some(&now) {
                            news.push((course.point.name.clone(), now));
                        }
                        course.told_of(&self.id, None);
                    }
                    Ok(Err(refused)) => course.told_of(&self.id, Some(refused)),
                    Err(why) => return why,
                }
            }
            self.tell_state(state, "ok").await;
            if news.is_empty() {
                continue;
            }
            let readings = news.iter().map(|(name, (value, taken))| {
                let reading = Reading::new(name, value);
                taken.iter().fold(reading, |reading, taken| reading.observing(taken))
            });
            match self.reporter.report(&self.id, readings).await {
                Ok(()) => {
                    for course in &mut courses {
                        if let Some((name, now)) = news.iter().find(|(name, _)| *name == course.point.name) {
                            course.told = Some(now.clone());
                            told.insert(name.clone(), now.clone());
                        }
                    }
                }
                // It is told with the next cycle.
                Err(error) => tracing::warn!(device = %self.id, "readings are told later: {error}"),
            }
        }
    }
}

impl Course {
    fn new(point: Point, due: Instant, told: &BTreeMap<String, (String, Option<String>)>) -> Self {
        let told = told.get(&point.name).cloned();
        Self { point, due, taken: None, told, trouble: None }
    }

    /// Says what is wrong when that has changed.
    fn told_of(&mut self, id: &DeviceId, trouble: Option<String>) {
        if self.trouble != trouble {
            let property = &self.point.name;
            match &trouble {
                Some(trouble) => tracing::warn!(device = %id, property, "{trouble}"),
                None => tracing::info!(device = %id, property, "it is well again"),
            }
            self.trouble = trouble;
        }
    }

    /// Writes what is desired and not taken yet, and reads.
    async fn turn(&mut self, context: &mut Context) -> Answered<String> {
        if self.taken != self.point.desired
            && let Some(desired) = self.point.desired.clone()
        {
            match self.write(context, &desired).await? {
                Ok(()) => self.taken = Some(desired),
                Err(refused) => return Ok(Err(format!("{desired} is not written: {refused}"))),
            }
        }
        self.read(context).await
    }

    async fn write(&self, context: &mut Context, desired: &str) -> Answered<()> {
        let offset = self.point.offset;
        if self.point.table == Table::Coils {
            match boolean(desired) {
                Ok(coil) => answered(context.write_single_coil(offset, coil)).await,
                Err(wrong) => Ok(Err(wrong)),
            }
        } else {
            match self.point.coding.encode(desired).as_deref() {
                Ok(&[word]) => answered(context.write_single_register(offset, word)).await,
                Ok(words) => answered(context.write_multiple_registers(offset, words)).await,
                Err(wrong) => Ok(Err(wrong.clone())),
            }
        }
    }

    async fn read(&self, context: &mut Context) -> Answered<String> {
        let Point { table, offset, coding, .. } = &self.point;
        let words = match table {
            Table::Coils => return Ok(self.bit(answered(context.read_coils(*offset, 1)).await?)),
            Table::DiscreteInputs => return Ok(self.bit(answered(context.read_discrete_inputs(*offset, 1)).await?)),
            Table::InputRegisters => answered(context.read_input_registers(*offset, coding.count)).await?,
            Table::HoldingRegisters => answered(context.read_holding_registers(*offset, coding.count)).await?,
        };
        Ok(words.and_then(|words| coding.decode(&words)))
    }

    fn bit(&self, bits: Result<Vec<bool>, String>) -> Result<String, String> {
        let bit = *bits?.first().ok_or("the device sent nothing")?;
        Ok(if self.point.coding.kind == Kind::Int { u8::from(bit).to_string() } else { bit.to_string() })
    }
}

async fn answered<T>(
    request: impl Future<Output = Result<Result<T, ExceptionCode>, tokio_modbus::Error>>,
) -> Answered<T> {
    match timeout(WITHIN, request).await {
        Ok(Ok(answer)) => Ok(answer.map_err(|exception| format!("the device refuses: {exception}"))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}
