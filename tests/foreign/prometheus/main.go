// Prometheus' discovery without the rest of it: prometheus CONFIGURATION.
//
// Prints a line of JSON for each change of the targets: a list of their labels, as Prometheus would scrape them. Debian
// builds Prometheus without the discovery of services in Consul.
package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	_ "github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/scrape"
)

func main() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(os.Args[1], logger); err != nil {
		logger.Error(err.Error())
		os.Exit(1)
	}
}

func run(file string, logger *slog.Logger) error {
	loaded, err := config.LoadFile(file, false, logger)
	if err != nil {
		return err
	}
	jobs := map[string]*config.ScrapeConfig{}
	wanted := map[string]discovery.Configs{}
	for _, job := range loaded.ScrapeConfigs {
		jobs[job.JobName] = job
		wanted[job.JobName] = job.ServiceDiscoveryConfigs
	}
	registry := prometheus.NewRegistry()
	metrics, err := discovery.CreateAndRegisterSDMetrics(registry)
	if err != nil {
		return err
	}
	// Prometheus' own time between updates is 5 s.
	soon := discovery.Updatert(100 * time.Millisecond)
	manager := discovery.NewManager(context.Background(), logger, registry, metrics, soon)
	go func() { _ = manager.Run() }()
	if err := manager.ApplyConfig(wanted); err != nil {
		return err
	}
	for groups := range manager.SyncCh() {
		if err := show(groups, jobs); err != nil {
			return err
		}
	}
	return nil
}

// show prints the targets that are left after the rules of relabelling.
func show(groups map[string][]*targetgroup.Group, jobs map[string]*config.ScrapeConfig) error {
	found := []labels.Labels{}
	builder := labels.NewBuilder(labels.EmptyLabels())
	for name, ofJob := range groups {
		for _, group := range ofJob {
			targets, errors := scrape.TargetsFromGroup(group, jobs[name], nil, builder)
			if len(errors) > 0 {
				return errors[0]
			}
			for _, target := range targets {
				// A target that a rule drops has no labels of its own.
				if one := target.Labels(builder); !one.IsEmpty() {
					found = append(found, labels.NewBuilder(one).Set("url", target.URL().String()).Labels())
				}
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}
