"""For teachers: nbgrader's masters are in solutions/, learners' copies go to exercises/."""

c = get_config()  # noqa: F821 - nbgrader provides it
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
