"""Everything vmfork promises, tried. `unit` needs no machine, `vm` boots and forks real ones, `image` builds images."""
