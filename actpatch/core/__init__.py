"""Words that every room uses: sites, patches, the table of components, directions, and checks of what was given.

Nothing here runs a model, knows a task or draws a figure, and nothing here imports another room.
"""
