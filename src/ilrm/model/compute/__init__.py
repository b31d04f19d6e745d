"""How a network is computed: in what parts, with which kernels and number formats. None of it changes what it is."""
