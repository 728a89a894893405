#!/bin/sh
set -eu
# A CA for this control plane, and the seed server's certificate with every name under which it is dialled.
rhizome-agent pki init --control-plane shoot--garden--a
rhizome-agent pki server --dns vpn.example --dns vpn-seed-server.shoot--garden--a.svc.cluster.local
# ca.key stays where it is: it is only needed to issue certificates.
kubectl --namespace shoot--garden--a create secret generic rhizome-seed-server-tls \
  --from-file=ca.crt=pki/ca.crt --from-file=tls.crt=pki/server.crt --from-file=tls.key=pki/server.key
helm install vpn charts/rhizome-seed-server --namespace shoot--garden--a --values examples/charts/seed-server.yaml
