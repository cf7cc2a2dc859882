//! Images that take a secret, that come late, that are asked for at every start, and how many are fetched at a time.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::*;

/// Repositories whose pulls wait at the gate.
pub(super) const SLOW: &str = "slow/";
const SLOW_ONES: [&str; 4] = ["slow/a", "slow/b", "slow/c", "slow/d"];
/// Repositories that take a secret.
pub(super) const PRIVATE: [&str; 2] = ["private/one", "private/two"];
/// Repositories that are not there at first.
pub(super) const LATE: [&str; 2] = ["late/comes", "late/never"];
/// One whose requests are counted.
const ASKED: &str = "asked/always";
pub(super) const REPOSITORIES: [&str; 9] =
    [PRIVATE[0], PRIVATE[1], SLOW_ONES[0], SLOW_ONES[1], SLOW_ONES[2], SLOW_ONES[3], LATE[0], LATE[1], ASKED];
/// Pulls at the same time.
const BOUND: usize = 2;
const CREDENTIALS: &str = "puller:s3cret";

pub(super) fn authorization() -> String {
    format!("Basic {}", STANDARD.encode(CREDENTIALS))
}

impl Node {
    fn pull_secret(&self, name: &str, credentials: &str) -> Secret {
        let config = json!({"auths": {self.registry.to_string(): {"auth": STANDARD.encode(credentials)}}});
        let data = [(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))].into();
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.namespace = Some("default".to_owned());
        secret.metadata.name = Some(name.to_owned());
        secret
    }

    fn image_of(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry)
    }

    fn pulled_from(&self, repository: &str) -> Value {
        json!({"name": "main", "image": self.image_of(repository), "command": ["/bin/sleep", "1000"]})
    }

    pub(super) async fn private_images_take_a_secret(&self) {
        let with = |name: &str, repository: &str, secrets: &[&str]| {
            let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
            self.pod(name, &[self.pulled_from(repository)], |pod| pod["spec"]["imagePullSecrets"] = secrets.into())
        };
        self.objects.put_secret(self.pull_secret("right", CREDENTIALS));
        self.objects.put_secret(self.pull_secret("wrong", "puller:guess"));
        let entrusted = with("entrusted", PRIVATE[0], &["wrong", "right"]);
        let late = with("late-secret", PRIVATE[1], &["wrong", "late"]);
        let (looked, waiting) = (self.look_after(&entrusted).await, self.look_after(&late).await);
        looked.until(|status| ready(status) == 1).await;
        waiting
            .hears(|told| {
                told == " FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (late); attempting to \
                         pull the image may not succeed."
            })
            .await;
        let state = |status: &Value| container(status, "main")["state"]["waiting"].clone();
        let status = waiting.until(|status| state(status)["reason"] == "ErrImagePull").await;
        assert!(state(&status)["message"].as_str().unwrap().contains("401"), "{status}");
        // The secret comes: the next try has it.
        self.objects.put_secret(self.pull_secret("late", CREDENTIALS));
        waiting.until(|status| ready(status) == 1).await;
        for (looked, pod) in [(looked, entrusted), (waiting, late)] {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
    }

    pub(super) async fn an_image_that_is_missing_is_asked_for_again(&self) {
        let pods =
            LATE.map(|repository| self.pod(&repository.replace('/', "-"), &[self.pulled_from(repository)], |_| {}));
        let [comes, never] = &pods;
        let (looked, in_vain) = (self.look_after(comes).await, self.look_after(never).await);
        let state = |status: &Value| container(status, "main")["state"]["waiting"].clone();
        for (looked, repository) in [(&looked, LATE[0]), (&in_vain, LATE[1])] {
            looked.until(|status| state(status)["reason"] == "ErrImagePull").await;
            let image = self.image_of(repository);
            let failed = format!("Failed: Failed to pull image \"{image}\": ");
            let back_off = format!("BackOff: Back-off pulling image \"{image}\"");
            for told in [failed.as_str(), "Failed: Error: ErrImagePull", &back_off, "Failed: Error: ImagePullBackOff"] {
                let told = format!("spec.containers{{main}} {told}");
                looked.hears(|heard| heard.starts_with(&told)).await;
            }
        }
        // One comes: the next try has it. The other one is asked for again, too.
        self.stock.arrives(LATE[0]);
        looked.until(|status| ready(status) == 1).await;
        let status = in_vain.until(|status| state(status)["reason"] == "ImagePullBackOff").await;
        assert!(state(&status)["message"].as_str().unwrap().contains("not found"), "{status}");
        for (looked, pod) in [(looked, comes), (in_vain, never)] {
            looked.delete(pod, 1).await;
            self.nothing_is_left(pod).await;
        }
    }

    pub(super) async fn always_asks_the_registry_before_each_start(&self) {
        let with = |name: &str, policy: &str| {
            let until_asked = "trap 'exit 1' TERM; while true; do sleep 0.2; done";
            let main = json!({"name": "main", "image": self.image_of(ASKED), "imagePullPolicy": policy,
                "command": ["/bin/sh", "-c", until_asked]});
            self.pod(name, &[main], |_| {})
        };
        let (always, present) = (with("always", "Always"), with("present", "IfNotPresent"));
        let looked = self.look_after(&always).await;
        looked.until(|status| ready(status) == 1).await;
        let asked = self.stock.asked(ASKED);
        assert!(asked > 0, "the image came from somewhere else");

        let beside = self.look_after(&present).await;
        beside.until(|status| ready(status) == 1).await;
        beside
            .hears(|told| told.contains(" Pulled: Container image ") && told.ends_with("already present on machine"))
            .await;
        assert_eq!(self.stock.asked(ASKED), asked, "what is present is good enough for others");

        self.exec("always", "main", "kill -TERM 1").await;
        looked.until(|status| container(status, "main")["restartCount"] == 1 && ready(status) == 1).await;
        assert!(self.stock.asked(ASKED) > asked, "it was not asked for before the second start");
        looked.hears_so_many(2, |told| told.contains(" Pulled: Successfully pulled image ")).await;
        for (looked, pod) in [(looked, always), (beside, present)] {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
    }

    pub(super) async fn pulls_have_a_bound(&self) {
        let reports = Arc::new(Reports::default());
        let shared = self.shared(&reports, BOUND).await;
        let pods = SLOW_ONES
            .map(|repository| self.pod(&repository.replace('/', "-"), &[self.pulled_from(repository)], |_| {}));
        let workers = pods.each_ref().map(|pod| {
            let (orders, received) = watch::channel(order(pod));
            (orders, tokio::spawn(worker::run(Arc::clone(&shared), received, Arc::default())))
        });
        // All have asked, and the bound is what the others wait for.
        let looked = Looked { orders: workers[0].0.clone(), reports, tasks: Vec::new() };
        for repository in SLOW_ONES {
            looked.hears(|told| told.contains(" Pulling: ") && told.contains(repository)).await;
        }
        let mut waiting = self.gate.waiting();
        let at_bound = tokio::time::timeout(LIMIT, waiting.wait_for(|waiting| *waiting >= BOUND)).await;
        at_bound.unwrap().unwrap();
        for done in 1..=SLOW_ONES.len() {
            self.gate.let_one_through();
            // While one is fetched, any other that is not held back comes to the gate.
            looked.hears_so_many(done, |told| told.contains(" Pulled: Successfully")).await;
        }
        assert_eq!(self.gate.most(), BOUND, "pulls under way at the same time");
        for ((orders, worker), pod) in workers.into_iter().zip(&pods) {
            let mut deleted = Pod::clone(pod);
            deleted.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
            deleted.metadata.deletion_grace_period_seconds = Some(1);
            orders.send_replace(order(&Arc::new(deleted)));
            tokio::time::timeout(LIMIT, worker).await.unwrap().unwrap();
            self.nothing_is_left(pod).await;
        }
    }
}
