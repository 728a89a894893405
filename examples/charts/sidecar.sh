#!/bin/sh
set -eu
# Prometheus reaches the shoot's nodes, pods and services by their addresses.
rhizome-agent pki sidecar --name prometheus
kubectl --namespace shoot--garden--a create secret generic prometheus-vpn \
  --from-file=ca.crt=pki/ca.crt --from-file=tls.crt=pki/sidecar-prometheus.crt --from-file=tls.key=pki/sidecar-prometheus.key
helm upgrade vpn charts/rhizome-seed-server --namespace shoot--garden--a --reuse-values --values examples/charts/sidecar.yaml
kubectl --namespace shoot--garden--a get configmap vpn-rhizome-seed-server-sidecar-prometheus \
  --output 'go-template={{index .data "pod-patch.yaml"}}' >prometheus-patch.yaml
kubectl --namespace shoot--garden--a patch deployment prometheus --patch-file prometheus-patch.yaml
