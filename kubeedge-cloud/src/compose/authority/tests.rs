//! Against the embedded API server.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use kubeedge_actors::{
    apiserver::{Config, Listen, Server},
    store::Store,
};

use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use super::*;

fn secret_name() -> SecretName {
    "kube-system/edge-ca".parse().unwrap()
}

async fn server() -> (kubeedge_actors::apiserver::Handle, Client) {
    let listen = Listen::InsecureLoopback { port: 0 };
    let server = Server::start(Config::new(Store::in_memory(), listen, "admin".into(), String::new())).await.unwrap();
    let mut config = kube::Config::new(format!("http://{}", server.address()).parse().unwrap());
    config.auth_info.token = Some("admin".to_owned().into());
    let client = Client::try_from(config).unwrap();
    (server, client)
}

#[actix_rt::test]
async fn an_authority_in_a_secret_is_made_once_and_shared() {
    let (server, client) = server().await;
    let now = SystemTime::now();
    let made = of_secret(&secret_name(), &client, now).await.unwrap();
    let again = of_secret(&secret_name(), &client, now).await.unwrap();
    assert_eq!(made.ca_hash(), again.ca_hash());

    // KubeEdge's own form, in DER, with the key as it is.
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let (other, key) = CertificateAuthority::generate(now).unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap().secret_pkcs8_der().to_vec();
    let data = [("cadata", other.certificate().to_vec()), ("cakeydata", der)];
    let data = data.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect();
    let metadata = ObjectMeta { name: Some("casecret".into()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data), ..Secret::default() };
    api.create(&PostParams::default(), &secret).await.unwrap();
    let taken = of_secret(&"kube-system/casecret".parse().unwrap(), &client, now).await.unwrap();
    assert_eq!(taken.ca_hash(), other.ca_hash());
    server.stop().await;
}

#[actix_rt::test]
async fn a_secret_without_an_authority_is_refused_and_not_replaced() {
    let (server, client) = server().await;
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let metadata = ObjectMeta { name: Some("edge-ca".into()), ..ObjectMeta::default() };
    let empty = Secret { metadata, ..Secret::default() };
    api.create(&PostParams::default(), &empty).await.unwrap();
    let error = of_secret(&secret_name(), &client, SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("kube-system/edge-ca: expected tls.crt and tls.key"), "{error}");
    assert_eq!(api.get("edge-ca").await.unwrap().data, None);
    server.stop().await;
}
