"""``edgemoe setup``: makes a graphics card usable if llama-cpp-python was built for the CPU.

``cards`` finds the cards of this machine, ``toolchain`` the programs that compile for them. ``build`` compiles one
backend of ggml alone. ``installed`` lists the backends that were built. ``advice`` names the command when a card lies
idle.
"""
