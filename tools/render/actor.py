"""The actor as Ray carries it to another machine: by value, because nothing of this pack can be imported there until
its folder, which lies at the same place on every machine, is on the path.
"""


class Actor:
    """Makes a worker where it runs. Its methods raise nothing of this pack's: they answer."""

    def __init__(self, root: str, target: str, settings: dict) -> None:
        import importlib
        import sys
        sys.path.insert(0, f"{root}/tools")
        from pack import load_pack
        load_pack()
        sys.path.pop(0)
        pools = importlib.import_module("qwen_image_2.tools.render.pools")
        self.worker = pools.WorkerKind(target, settings).make()

    def facts(self) -> dict[str, str]:
        return self.worker.facts()

    def start(self) -> str:
        """Empty, or why it did not start."""
        try:
            self.worker.start()
        except RuntimeError as error:
            return str(error)
        return ""

    def draw(self, job):
        return self.worker.draw(job)

    def stop(self) -> None:
        self.worker.stop()
