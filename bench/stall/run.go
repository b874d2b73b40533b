package stall

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// bench is one server on one volume, under load.
type bench struct {
	plan   Plan
	kind   string
	path   string // of the filesystem; the data directory is mysql below it
	group  string // of the logical volume, empty for Btrfs
	thin   bool
	work   string // for what the contenders need besides
	config string // respaldo's
	server *servers.Running
	db     *sql.DB
	load   *load
	probe  *probe
}

// tail is for how long after its end a contender is watched at least.
const tail = 500 * time.Millisecond

// quiet is how long the load is watched at least while nothing happens: about as long as a
// contender takes, since the longest gap of a longer time is longer.
const quiet = 10 * time.Second

// Run measures what the plan says, as root, and writes the results to its file. It prints each
// trial.
func Run(t guest.T, plan Plan) {
	r := Results{Versions: map[string]string{}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	for disk, kind := range plan.Kinds {
		b, err := newBench(t, plan, disk, kind)
		if err == nil {
			var trials []Trial
			trials, err = b.measure()
			r.Trials = append(r.Trials, trials...)
			r.Versions[plan.Server] = b.version()
			err = errors.Join(err, b.close())
		}
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(plan.Results, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newBench makes the volume and starts a server on it, and the load.
func newBench(t guest.T, plan Plan, disk int, kind string) (*bench, error) {
	ctx := context.Background()
	b := &bench{plan: plan, kind: kind, work: filepath.Join("/srv/stall", kind)}
	spec := servers.Spec{Name: plan.Server}
	if plan.Folder == "" {
		v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Disk: disk, Bytes: 1 << 30})
		b.path, b.group, b.thin = v.Path, v.Group, v.Pool != ""
		spec.User = "mysql"
	} else {
		b.path, b.work = filepath.Join(plan.Folder, "volume"), filepath.Join(plan.Folder, "work")
		if err := mountFile(filepath.Join(plan.Folder, "volume.img"), b.path); err != nil {
			return nil, err
		}
	}
	spec.DataDir = filepath.Join(b.path, "mysql")
	if b.group == "" {
		if _, err := command(nil, b.btrfs("subvolume", "create", spec.DataDir)...); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(os.MkdirAll(b.work, 0o755), servers.Init(ctx, plan.Server, spec.DataDir)); err != nil {
		return nil, err
	}
	if spec.User != "" {
		guest.Chown(t, spec.DataDir)
	}
	spec.Socket, spec.Log = "/run/mysqld/"+kind+".sock", filepath.Join(b.work, "server.err")
	if plan.Folder != "" {
		spec.Socket = "" // one of its own
	}
	spec.Args = []string{"--performance-schema=OFF"}
	var err error
	if b.server, err = servers.Start(ctx, spec); err != nil {
		return nil, err
	}
	b.db = b.server.Open()
	return b, errors.Join(b.configure(), b.start(ctx))
}

func (b *bench) start(ctx context.Context) (err error) {
	if b.load, err = startLoad(ctx, b.db, b.plan.Connections, b.plan.Pace); err == nil {
		b.probe, err = startProbe(b.path)
	}
	return err
}

// configure writes respaldo's configuration: what it needs to find the server, and folders
// of its own.
func (b *bench) configure() error {
	b.config = filepath.Join(b.work, "respaldo.toml")
	options := filepath.Join(b.work, "client.cnf")
	// A lab that is busy may need long for a snapshot, and so for a lock; a long SELECT shall not have
	// the time to end while writers are held.
	most := "20s"
	if b.plan.Read > 0 {
		most = (b.plan.Read / 2).String()
	}
	text := fmt.Sprintf("format = 1\nstate_dir = %q\nrun_dir = %q\n[server.main]\ndefaults_file = %q\nmax_lock = %q\n",
		filepath.Join(b.work, "state"), filepath.Join(b.work, "run"), options, most)
	return errors.Join(os.WriteFile(b.config, []byte(text), 0o600),
		os.WriteFile(options, []byte("[client]\nuser=root\nsocket="+b.server.Spec().Socket+"\n"), 0o600))
}

// measure has every contender take its snapshot once for nothing, so that each finds its
// programs in memory, and then in each round, every time in another order.
func (b *bench) measure() (trials []Trial, err error) {
	list := b.contenders()
	for _, c := range list {
		if _, err := c.take(); err != nil {
			return nil, err
		}
		if err := c.remove(); err != nil {
			return nil, err
		}
	}
	for round := range b.plan.Rounds {
		for i := range list {
			c := list[(round+i)%len(list)]
			if c.name == Look && round > 0 { // it is for comparison only
				continue
			}
			t, err := b.trial(c)
			if err != nil {
				return nil, err
			}
			t.Round = round + 1
			fmt.Printf("%-11s round %d: %-22s gap %6.0f ms, p99.9 %6.0f ms, lock %5.0f ms, volume %5.0f ms (suspended %5.1f ms), %d commits; took %.1f s %s\n", t.Kind, t.Round, t.Contender,
				t.Gap*1e3, t.Latency*1e3, (t.Waited+t.Held)*1e3, t.Pause*1e3, t.Suspended*1e3, t.Commits, t.Took, t.Failed)
			trials = append(trials, t)
		}
	}
	return trials, nil
}

// trial is one contender's turn.
func (b *bench) trial(c contender) (Trial, error) {
	if err := b.caughtUp(); err != nil {
		return Trial{}, err
	}
	b.until(b.load.now() + Lead)
	var read chan error
	if b.plan.Read > 0 {
		read = b.startRead()
		b.until(b.load.now() + Lead)
	}
	if _, err := b.probe.take(); err != nil {
		return Trial{}, err
	}
	begun := b.load.now()
	lock, failed := c.take()
	took := b.load.now() - begun
	window := b.plan.Window
	if c.name == None {
		window = max(window, quiet)
	}
	within := span{begun, begun + max(window, took+tail)}
	b.until(within.to)
	pause, err := b.probe.take()
	if read != nil {
		err = errors.Join(err, <-read)
	}
	commits, err2 := b.load.all()
	if err := errors.Join(err, err2); err != nil {
		return Trial{}, err
	}
	all, gap := latencies(commits, within), longestGap(commits, within)
	t := Trial{Kind: b.kind, Contender: c.name, Took: took.Seconds(), Window: (within.to - within.from).Seconds(),
		Gap: (gap.to - gap.from).Seconds(), GapAt: (gap.from - begun).Seconds(), Latency: percentile(all, 0.999).Seconds(), Commits: len(all),
		Waited: lock.waited, Held: lock.held, Lock: lock.lock, Pause: pause.Seconds(), Suspended: lock.suspended,
		Counts: perSlice(commits, span{begun - Lead, within.to})}
	switch {
	case failed == nil:
		failed = c.remove()
	case b.plan.Read > 0: // to refuse is a result here
		t.Failed, failed = failed.Error(), nil
	}
	return t, errors.Join(failed, b.settle())
}

// until waits until the load's clock shows a time.
func (b *bench) until(at time.Duration) { time.Sleep(at - b.load.now()) }

// caughtUp waits until the load has done what it could not do during the last trial.
func (b *bench) caughtUp() error {
	const limit = 3 * time.Minute
	for begun := time.Now(); b.load.late() > b.plan.Pace; time.Sleep(b.plan.Pace) {
		if time.Since(begun) > limit {
			return fmt.Errorf("the server cannot carry the load of %d transactions in %s: it is %s behind", b.plan.Connections, b.plan.Pace, b.load.late())
		}
	}
	return nil
}

// settle has the volume do what the last contender has left to it.
func (b *bench) settle() error {
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if b.group == "" {
		if _, err := command(nil, b.btrfs("subvolume", "sync", b.path)...); err != nil {
			return err
		}
	}
	return unix.Syncfs(int(f.Fd()))
}

// startRead starts a SELECT that takes long. It sleeps, so that it takes no processor from
// anybody. Its end comes by the channel.
func (b *bench) startRead() chan error {
	ended := make(chan error, 1)
	go func() {
		var slept int
		ended <- b.db.QueryRow(fmt.Sprintf("SELECT SLEEP(%f) FROM stall.archive", b.plan.Read.Seconds())).Scan(&slept)
	}()
	return ended
}

func (b *bench) version() (version string) {
	if err := b.db.QueryRow("SELECT VERSION()").Scan(&version); err != nil {
		return "unknown"
	}
	return version
}

func (b *bench) close() error {
	b.load.halt()
	return errors.Join(b.probe.halt(), b.db.Close(), b.server.Stop())
}
