"""The importing process: cut off from the network before anything of a model, or of its library, is loaded.

python -m mlserve.optimize.importers < request    (started by mlserve.optimize.importing)
"""

from mlserve.optimize.importers.confinement import shut_network

if __name__ == "__main__":
    wall = shut_network()
    from mlserve.optimize.importers.worker import main

    main(wall)
