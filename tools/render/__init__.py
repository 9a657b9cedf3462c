"""A workflow over a table: one picture, or more, for each row, by one worker here or by many on a Ray cluster.

    plan     workflow and table -> jobs: a filled-in graph for each row
    worker   one ComfyUI server that draws jobs; machines: what its machine has
    pools    who draws next: one worker in this process, or actors of Ray (actor)
    journal  which rows are done, on disk
    driver   gives out jobs, stores what comes back, tries again, stops
    summary  what came out, as JSON and as a contact sheet
"""
