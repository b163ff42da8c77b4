package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// service is what every folder under services/ offers.
type service interface {
	// Run works until ctx ends and then returns nil, or fails.
	Run(ctx context.Context) error
	// Ready is closed once the service can be used.
	Ready() <-chan struct{}
}

// startTimeout bounds how long one service may take to become ready.
const startTimeout = 30 * time.Second

// services start in order, each when the one before is ready, and stop in
// reverse. The first that fails is the cause of everyone's end.
type services struct {
	ctx     context.Context // ends with the first failure
	fail    context.CancelCauseFunc
	logger  *slog.Logger
	started []running
}

type running struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	it   any
}

func newServices(ctx context.Context, logger *slog.Logger) *services {
	ctx, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	return &services{ctx: ctx, fail: fail, logger: logger}
}

// start runs s and waits until it is ready.
func (g *services) start(name string, s service) error {
	// A service ends when stop says so, not when another fails: what depends on
	// it ends first.
	ctx, stop := context.WithCancel(context.WithoutCancel(g.ctx))
	r := running{name: name, stop: stop, done: make(chan struct{}), it: s}
	g.started = append(g.started, r)
	begun := time.Now()
	go func() {
		defer close(r.done)
		err := s.Run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("ended by itself")
		}
		if err != nil {
			g.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-s.Ready():
		g.logger.Debug("service is ready", "service", name, "took", time.Since(begun))
		return nil
	case <-g.ctx.Done():
		return context.Cause(g.ctx)
	case <-timeout.C:
		return fmt.Errorf("%s was not ready after %v", name, startTimeout)
	}
}

// stop ends the services in reverse and closes what they hold.
func (g *services) stop() error {
	var errs []error
	for len(g.started) > 0 {
		r := g.started[len(g.started)-1]
		g.started = g.started[:len(g.started)-1]
		r.stop()
		<-r.done
		if c, ok := r.it.(io.Closer); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("closing %s: %w", r.name, err))
			}
		}
		g.logger.Debug("service has stopped", "service", r.name)
	}
	return errors.Join(errs...)
}
