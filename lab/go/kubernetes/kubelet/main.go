// The endpoint of a kubelet, without a kubelet: what kube-apiserver and kubectl talk to on port 10250 of a node.
//
//	kubelet CONFIG.json
//
// Logs, exec, attach and port-forward are served by Kubernetes' own streaming library, the one that containerd uses, over
// TLS with a client certificate required. A container is a local process in namespaces of its own: see Pod.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
	streaming "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// Config is the whole of the configuration file.
type Config struct {
	Listen      string         `json:"listen"`
	Certificate string         `json:"certificate"`
	Key         string         `json:"key"`
	ClientCA    string         `json:"client_ca"`
	Pods        map[string]Pod `json:"pods"` // by namespace/name
}

// Pod has one container. Enter is put before a command that shall run in it.
type Pod struct {
	Enter   []string `json:"enter"`
	Log     string   `json:"log"`
	Network string   `json:"network"` // path of its network namespace
}

const (
	idle     = 4 * time.Hour
	creation = 30 * time.Second
	poll     = 50 * time.Millisecond
)

type kubelet struct{ pods map[string]Pod }

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	if len(os.Args) != 2 {
		log.Fatal("usage: kubelet CONFIG.json")
	}
	config, authority, err := load(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	k := kubelet{config.Pods}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", k.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", k.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", k.portForward)
	}
	server := http.Server{
		Addr:    config.Listen,
		Handler: mux,
		TLSConfig: &tls.Config{
			ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs:  authority,
			NextProtos: []string{"http/1.1"}, // SPDY upgrades are HTTP/1.1
			MinVersion: tls.VersionTLS12,
		},
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	log.Fatal(server.ServeTLS(listener, config.Certificate, config.Key))
}

func load(path string) (Config, *x509.CertPool, error) {
	var config Config
	text, err := os.ReadFile(path)
	if err != nil {
		return config, nil, err
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return config, nil, err
	}
	authority, err := os.ReadFile(config.ClientCA)
	if err != nil {
		return config, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return config, nil, errors.New("no certificate in " + config.ClientCA)
	}
	return config, pool, nil
}

// pod answers 404 itself when there is none, and returns false.
func (k kubelet) pod(w http.ResponseWriter, r *http.Request) (string, bool) {
	name := r.PathValue("namespace") + "/" + r.PathValue("pod")
	if _, found := k.pods[name]; !found {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
		return "", false
	}
	return name, true
}

func (k kubelet) logs(w http.ResponseWriter, r *http.Request) {
	name, found := k.pod(w, r)
	if !found {
		return
	}
	file, err := os.Open(k.pods[name].Log)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	if lines, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil {
		if err := tail(file, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	follow(r.Context(), w, file, r.URL.Query().Get("follow") == "true")
}

// tail leaves the file at the beginning of its last lines.
func tail(file *os.File, lines int) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(text)
	for ; lines > 0 && at > 0; lines-- {
		at = bytes.LastIndexByte(text[:at-1], '\n') + 1
	}
	_, err = file.Seek(int64(at), io.SeekStart)
	return err
}

// follow copies a file as it grows, until the reader goes away; without forever, once.
func follow(ctx context.Context, w io.Writer, file io.Reader, forever bool) {
	flusher, _ := w.(http.Flusher)
	for {
		written, err := io.Copy(w, file)
		if err != nil || !forever {
			return
		}
		if flusher != nil && written > 0 {
			flusher.Flush()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
	}
}

func (k kubelet) exec(w http.ResponseWriter, r *http.Request) {
	name, found := k.pod(w, r)
	if !found {
		return
	}
	options, err := streaming.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	streaming.ServeExec(w, r, k, name, "", r.PathValue("container"), r.URL.Query()["command"], options,
		idle, creation, remotecommandconsts.SupportedStreamingProtocols)
}

func (k kubelet) attach(w http.ResponseWriter, r *http.Request) {
	name, found := k.pod(w, r)
	if !found {
		return
	}
	options, err := streaming.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	streaming.ServeAttach(w, r, k, name, "", r.PathValue("container"), options,
		idle, creation, remotecommandconsts.SupportedStreamingProtocols)
}

func (k kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	name, found := k.pod(w, r)
	if !found {
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, k, name, "", options, idle, creation, portforward.SupportedProtocols)
}

// ExecInContainer runs a command to its end. The command's standard input ends with the stream's.
func (k kubelet) ExecInContainer(ctx context.Context, pod string, _ types.UID, _ string, words []string,
	in io.Reader, out, errs io.WriteCloser, tty bool, _ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	if tty {
		return errors.New("there are no terminals here: leave -t out")
	}
	words = append(append([]string{}, k.pods[pod].Enter...), words...)
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	if out != nil {
		command.Stdout = out
	}
	if errs != nil {
		command.Stderr = errs
	}
	if in != nil {
		// Not command.Stdin: Wait would wait for a client that has nothing more to say.
		pipe, err := command.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			defer pipe.Close()
			_, _ = io.Copy(pipe, in)
		}()
	}
	err := command.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return utilexec.CodeExitError{Err: err, Code: ended.ExitCode()}
	}
	return err
}

// AttachContainer shows what the container writes from now on. The lab's containers read no standard input.
func (k kubelet) AttachContainer(ctx context.Context, pod string, _ types.UID, _ string,
	_ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize,
) error {
	file, err := os.Open(k.pods[pod].Log)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if out != nil {
		follow(ctx, out, file, true)
	}
	return nil
}

// PortForward carries one connection to a port of the pod's loopback interface.
func (k kubelet) PortForward(_ context.Context, pod string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	connection, err := dialInside(k.pods[pod].Network, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.CloseWrite()
	}()
	_, err = io.Copy(stream, connection)
	return err
}

// dialInside makes a connection in another network namespace. A thread that cannot come back ends with its goroutine.
func dialInside(namespace, address string) (*net.TCPConn, error) {
	type result struct {
		connection *net.TCPConn
		err        error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		file, err := os.Open(namespace)
		if err == nil {
			defer file.Close()
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		where, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			done <- result{nil, err}
			return
		}
		connection, err := net.DialTCP("tcp", nil, where)
		done <- result{connection, err}
	}()
	made := <-done
	return made.connection, made.err
}
