package rekor

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/sigstore/rekor/pkg/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// upstreamLogger is where upstream's warnings and errors go, or nil.
var upstreamLogger atomic.Pointer[slog.Logger]

func init() {
	// A Fatal of upstream's must not end the process.
	l := zap.New(slogCore{}, zap.WithFatalHook(zapcore.WriteThenPanic))
	// Upstream has a second variable, in an internal package, that points to
	// the same logger: replacing what both point to reaches it too.
	*log.Logger = *l.Sugar()
}

// slogCore hands zap's entries, from warnings up, to upstreamLogger.
type slogCore struct{ fields []zapcore.Field }

func (slogCore) Enabled(l zapcore.Level) bool {
	logger := upstreamLogger.Load()
	return l >= zapcore.WarnLevel && logger != nil && logger.Enabled(context.Background(), level(l))
}

func level(l zapcore.Level) slog.Level {
	if l == zapcore.WarnLevel {
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{slices.Concat(c.fields, fields)}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	// Upstream's messages carry the particulars; ours is the constant.
	all := append([]slog.Attr{slog.String("upstream", e.Message)}, attrs(slices.Concat(c.fields, fields))...)
	if logger := upstreamLogger.Load(); logger != nil {
		logger.LogAttrs(context.Background(), level(e.Level), "log server reports", all...)
	}
	return nil
}

func (slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		// On errors of its own upstream logs the request's whole body.
		if f.Key != "requestBody" {
			f.AddTo(enc)
		}
	}
	all := make([]slog.Attr, 0, len(enc.Fields))
	for key, value := range enc.Fields {
		all = append(all, slog.Any(key, value))
	}
	return all
}
