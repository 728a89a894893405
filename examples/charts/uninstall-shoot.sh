#!/bin/sh
set -eu
# Tunnels outlive their pods on purpose. This upgrade takes device, routes and firewall off the nodes; then nothing is left to remove.
helm upgrade vpn charts/rhizome-shoot-client --namespace kube-system --reuse-values --set cleanup=true --wait
helm uninstall vpn --namespace kube-system --wait
kubectl --namespace kube-system delete secret rhizome-shoot-client-tls
